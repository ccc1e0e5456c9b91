# SPDX-License-Identifier: Apache-2.0
# The training stream: worker processes generate problems, drop those of the held-out sets, encode and pack them into rows.
# A row is ROW + 1 tokens of whole chats one after the other (as in a dialogue); bit 15 marks the tokens of answers,
# the only ones that are learnt, bit 14 the letters of options among them, which weigh more. Called by train.py.

import hashlib
import multiprocessing
import os
import random

import numpy as np

from multiple_choice import LETTERS, multiple_choice, render
from problems import Draw, word_problem
from tokenizer import FastEncoder

ROW = 1024
ANSWER_BIT = 0x8000
LETTER_BIT = 0x4000
ROWS_A_BLOCK = 64
MC_SHARE = 0.3
VARIANT_SHARE = 0.12
OPTION_COUNTS = (2, 3, 4, 6, 10, 10, 10, 10, 10, 10)  # few options are easier to learn from; tests have ten


def fingerprint(question):
    """64 bits of a question's text; training questions with a held-out fingerprint are dropped."""
    return hashlib.blake2b(question.encode(), digest_size=8).digest()


def draw_chat(r, held_out):
    """One training chat: (user, answer, is word problem) or None if its question is held out."""
    if r.random() < MC_SHARE:
        stem, options, _, working, _ = multiple_choice(r, r.pick(OPTION_COUNTS))
        if fingerprint(stem) in held_out:
            return None
        user = render(stem, options)
        if r.random() < VARIANT_SHARE:
            user = user.replace("\nAnswer: Let's think step by step.", "")
        return user, working, False
    question, answer, _ = word_problem(r)
    if fingerprint(question) in held_out:
        return None
    if r.random() < VARIANT_SHARE:
        question = f"Question: {question}\nAnswer:"
    return question, answer, True


class Packer:
    """Fills rows with whole chats; a pool lets the last chat of a row be one that fits."""

    def __init__(self, encoder, r, held_out):
        self.encoder, self.r, self.held_out = encoder, r, held_out
        self.dropped = self.chats = self.words = 0
        self.letters = np.array([encoder.text(x)[0] for x in LETTERS], dtype=np.uint16)
        self.pool = []
        while len(self.pool) < 96:
            self.pool.append(self.fresh())

    def fresh(self):
        while True:
            chat = draw_chat(self.r, self.held_out)
            if chat is None:
                self.dropped += 1
                continue
            ids, start, stop = self.encoder.chat(chat[0], chat[1])
            if len(ids) > ROW + 1:
                continue
            a = np.array(ids, dtype=np.uint16)
            if not chat[2]:
                a[start:stop] |= np.where(np.isin(a[start:stop], self.letters), LETTER_BIT, 0).astype(np.uint16)
            a[start:stop] |= ANSWER_BIT
            self.chats += 1
            self.words += chat[2]
            return a

    def fill(self, row):
        at, room = 0, ROW + 1
        pool = self.pool
        while True:
            best, size = -1, 0
            if room > 700:
                best, size = 0, len(pool[0])
            else:
                for i, a in enumerate(pool):
                    n = len(a)
                    if size < n <= room:
                        best, size = i, n
            if best < 0:
                break
            row[at : at + size] = pool[best]
            at, room = at + size, room - size
            pool.pop(best)
            pool.append(self.fresh())
        row[at:] = self.encoder.end_of_text

    def block(self):
        out = np.empty((ROWS_A_BLOCK, ROW + 1), dtype=np.uint16)
        for row in out:
            self.fill(row)
        return out


def run_worker(index, seed, tok, held_out, queue, counts):
    """Body of a worker process: blocks into the queue until it is ended."""
    os.nice(5)
    packer = Packer(FastEncoder(tok), Draw(random.Random(f"stream {seed} {index}")), held_out)
    while True:
        block = packer.block()
        with counts.get_lock():
            counts[0] += packer.chats
            counts[1] += packer.words
            counts[2] += packer.dropped
        packer.chats = packer.words = packer.dropped = 0
        queue.put(block)


class Stream:
    """The worker processes and their queue; start it before the GPU is touched (it forks)."""

    def __init__(self, tok, held_out, seed, workers):
        context = multiprocessing.get_context("fork")
        self.queue = context.Queue(maxsize=8 * workers)
        self.counts = context.Array("q", 3)
        self.workers = [context.Process(target=run_worker, daemon=True,
                                        args=(i, seed, tok, held_out, self.queue, self.counts)) for i in range(workers)]
        for w in self.workers:
            w.start()

    def rows(self, n):
        """n rows (a multiple of ROWS_A_BLOCK) as uint16 [n, ROW + 1]."""
        return np.concatenate([self.queue.get() for _ in range(n // ROWS_A_BLOCK)])

    def stop(self):
        """Ends the workers; returns (chats, word problems, dropped as held out)."""
        for w in self.workers:
            w.terminate()
        return tuple(self.counts)

# SPDX-License-Identifier: Apache-2.0
# The held-out test sets, from a seed of their own: word problems in the fields of GSM8K, multiple choice in those of
# MMLU-Pro. Called by train.py, which keeps their questions out of the training stream.

import json
import os
import random

from multiple_choice import LETTERS, multiple_choice
from problems import MAX_STEPS, MIN_STEPS, Draw, word_problem


def make_gsm8k(seed, n):
    """n word problems, as many of each number of steps (which is the number of lines before ####)."""
    r = Draw(random.Random(f"held-out word problems {seed}"))
    out, seen = [], set()
    while len(out) < n:
        question, answer, _ = word_problem(r, MIN_STEPS + len(out) % (MAX_STEPS - MIN_STEPS + 1))
        if question not in seen:
            seen.add(question)
            out.append({"question": question, "answer": answer})
    return out


def make_mmlu_pro(seed, n):
    """n questions of ten options."""
    r = Draw(random.Random(f"held-out multiple choice {seed}"))
    out, seen = [], set()
    while len(out) < n:
        stem, options, at, working, category = multiple_choice(r)
        if stem in seen:
            continue
        seen.add(stem)
        out.append({"question_id": len(out), "question": stem, "options": options, "answer": LETTERS[at], "answer_index": at,
                    "cot_content": "A: Let's think step by step. " + working, "category": category, "src": "abacus"})
    return out


def save_jsonl(rows, path):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(row) + "\n")

# SPDX-License-Identifier: Apache-2.0
# Makes the abacus checkpoint from nothing but a seed: tokenizer, held-out test sets, training stream, training, the Hugging
# Face folder OUT/bf16 and the accuracy of what was saved. One GPU, some 16 CPU cores, minutes:
#   python3 train.py --out OUT --branches 65:25
# Training goes by the clock, so the result depends on the machine's speed; the data do not. A branch A:B is A seconds at
# the full learning rate and B seconds of decay to zero; several branches share the part at the full rate.

import argparse
import json
import os
import queue
import random
import threading
import time

START = time.time()

import torch
from safetensors.torch import save_file

from evaluate import evaluate_all
from heldout import make_gsm8k, make_mmlu_pro, save_jsonl
from model import Model, Shape, to_hf
from optimizer import Optimizer
from stream import ROW, Stream, fingerprint
from tokenizer import FastEncoder, save_tokenizer, train_tokenizer


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--out", required=True)
    p.add_argument("--seed", type=int, default=20)
    p.add_argument("--branches", default="65:25", help="A:B[,A:B...], seconds, A ascending")
    p.add_argument("--rows", type=int, default=128, help="rows of 1,024 tokens a step")
    p.add_argument("--workers", type=int, default=max(1, min(12, (os.cpu_count() or 2) - 3)))
    p.add_argument("--muon-lr", type=float, default=0.02)
    p.add_argument("--adam-lr", type=float, default=0.003)
    p.add_argument("--balance", type=float, default=0.01)
    p.add_argument("--tests", type=int, default=1000, help="held-out word problems (half as many multiple choice)")
    p.add_argument("--no-compile", action="store_true")
    p.add_argument("--no-evaluation", action="store_true")
    return p.parse_args()


def held_out_sets(args, tok):
    """Writes both test sets; returns the fingerprints of their questions."""
    words, choices = make_gsm8k(args.seed, args.tests), make_mmlu_pro(args.seed, args.tests // 2)
    save_jsonl(words, os.path.join(args.out, "gsm8k.jsonl"))
    save_jsonl(choices, os.path.join(args.out, "mmlu_pro.jsonl"))
    enc = FastEncoder(tok)
    for w in words:
        enc.check(w["question"], w["answer"])
    return frozenset(fingerprint(x["question"]) for x in words + choices)


def prefetch(stream, rows, device, ahead=4):
    """An endless iterator of device batches, filled by a thread."""
    ready = queue.Queue(maxsize=ahead)

    def fill():
        while True:
            batch = torch.from_numpy(stream.rows(rows).astype("int32"))
            ready.put(batch.pin_memory() if device == "cuda" else batch)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        yield ready.get().to(device, non_blocking=True)


class Trainer:
    """The model with its optimiser and data; phases by the clock, snapshots between them."""

    def __init__(self, args, model, batches, device):
        self.args, self.model, self.batches, self.device = args, model, batches, device
        model.compute_dtype = torch.bfloat16
        self.mix = torch.zeros((), device=device)
        for layer in model.layers:
            layer.mix = self.mix
        self.opt = Optimizer(model, args.muon_lr, args.adam_lr)
        self.loss_of = model.loss if args.no_compile else torch.compile(model.loss, dynamic=False)
        self.lot = random.Random(f"int4 {args.seed}")
        self.steps = 0

    def step(self, factor, rounded):
        self.mix.fill_(1.0 if rounded else 0.0)
        with torch.autocast(self.device, dtype=torch.bfloat16):
            loss, balance = self.loss_of(next(self.batches))
            (loss + self.args.balance * balance).backward()
        self.opt.step(min(1.0, (self.steps + 1) / 100) * factor)
        self.steps += 1
        if self.steps in (10, 50) or self.steps % 250 == 0:
            print(f"step {self.steps:6d}  loss {loss.item():.4f}  balance {balance.item():.3f}  rate x {factor:.3f}"
                  f"  {time.time() - START:.1f} s", flush=True)

    def phase(self, seconds, decay):
        """Trains for `seconds`; in a decay the rate falls to zero and half of the steps see int4 weights."""
        begin = time.time()
        while (progress := (time.time() - begin) / seconds) < 1.0:
            self.step(1.0 - progress if decay else 1.0, decay and self.lot.random() < 0.5)

    def state(self):
        """Copies of everything that a step changes (data apart)."""
        params = [p.detach().clone() for p in self.model.parameters()]
        return params, self.opt.state(), self.steps

    @torch.no_grad()
    def restore(self, state):
        for p, saved in zip(self.model.parameters(), state[0]):
            p.copy_(saved)
        self.opt.restore(state[1])
        self.steps = state[2]


def train(args, model, batches, device, finish):
    """Trains all branches; finish(name, record) is called with the model at the end of each."""
    trainer = Trainer(args, model, batches, device)
    for _ in range(3):  # compiles
        trainer.step(1.0, False)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"compiled, {time.time() - START:.1f} s after the start", flush=True)
    branches = [tuple(float(x) for x in b.split(":")) for b in args.branches.split(",")]
    done = 0.0
    for i, (until, decay) in enumerate(branches):
        trainer.phase(until - done, False)
        done = until
        state = trainer.state()
        trainer.phase(decay, True)
        finish("bf16" if len(branches) == 1 else f"bf16_{i + 1}",
               {"seconds": until + decay, "steps": trainer.steps, "tokens": trainer.steps * args.rows * ROW})
        trainer.restore(state)


def save_json(value, path):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def save(args, model, tok, name):
    """The Hugging Face folder OUT/name."""
    folder = os.path.join(args.out, name)
    save_tokenizer(tok, folder)
    eos, pad = tok.token_to_id("<|im_end|>"), tok.token_to_id("<|endoftext|>")
    generation = {"do_sample": False, "eos_token_id": [eos, pad], "pad_token_id": pad, "transformers_version": "4.57.6"}
    save_json(model.s.hf_config(eos, pad), os.path.join(folder, "config.json"))
    save_json(generation, os.path.join(folder, "generation_config.json"))
    path = os.path.join(folder, "model.safetensors")
    save_file(to_hf(model), path, metadata={"format": "pt"})
    os.chmod(path, 0o644)
    return folder


def main():
    args = arguments()
    tok = train_tokenizer(args.seed)
    held_out = held_out_sets(args, tok)
    stream = Stream(tok, held_out, args.seed, args.workers)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    vocab = -(-tok.get_vocab_size() // 16) * 16
    model = Model(Shape(vocab=vocab)).to(device)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count} parameters, vocabulary {tok.get_vocab_size()}, {args.workers} workers, {device}", flush=True)
    record = {"parameters": count, "args": vars(args), "branches": {},
              "device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}
    folders = {}

    def finish(name, values):
        folders[name] = save(args, model, tok, name)
        chats, words, dropped = stream.counts
        record["branches"][name] = dict(values, chats_generated=chats, word_problems_generated=words, dropped_as_held_out=dropped)
        print(name, record["branches"][name], flush=True)
        save_json(record, os.path.join(args.out, "training.json"))

    train(args, model, prefetch(stream, args.rows, device), device, finish)
    stream.stop()
    if not args.no_evaluation:
        evaluate_all(list(folders.values()), args.out, device)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
# Makes the abacus checkpoint from nothing but a seed: tokenizer, held-out test sets, training stream, training, the Hugging
# Face folder OUT/bf16 and the accuracy of what was saved. One GPU, some 16 CPU cores, minutes:
#   python3 train.py --out OUT --seconds 400
# Training ends by the clock (the schedule follows it), so the result depends on the machine's speed; the data do not.

import argparse
import json
import math
import os
import queue
import random
import threading
import time

START = time.time()

import torch
from safetensors.torch import save_file

from evaluate import evaluate
from heldout import make_gsm8k, make_mmlu_pro, save_jsonl
from model import Model, Shape, to_hf
from optimizer import Optimizer
from stream import ROW, Stream, fingerprint
from tokenizer import FastEncoder, save_tokenizer, train_tokenizer


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--out", required=True)
    p.add_argument("--seed", type=int, default=20)
    p.add_argument("--seconds", type=float, default=400, help="training ends this long after the start of the program")
    p.add_argument("--rows", type=int, default=128, help="rows of 1,024 tokens a step")
    p.add_argument("--workers", type=int, default=max(1, min(12, (os.cpu_count() or 2) - 3)))
    p.add_argument("--muon-lr", type=float, default=0.02)
    p.add_argument("--adam-lr", type=float, default=0.003)
    p.add_argument("--balance", type=float, default=0.01)
    p.add_argument("--int4-from", type=float, default=0.8,
                   help="from this part of the time on every second step, drawn by lot, sees weights rounded to int4")
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


def factor(step, progress, warmup=100):
    """Learning-rate factor: linear warm-up in steps, then a cosine over the elapsed part of the time."""
    return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def train(args, model, batches, device):
    """Trains until the clock says stop; returns the record of the training."""
    model.compute_dtype = torch.bfloat16
    mix = torch.zeros((), device=device)
    for layer in model.layers:
        layer.mix = mix
    opt = Optimizer(model, args.muon_lr, args.adam_lr)
    loss_of = model.loss if args.no_compile else torch.compile(model.loss, dynamic=False)
    lot = random.Random(f"int4 {args.seed}")
    step, begin, last, last_step = 0, None, time.time(), 0
    while True:
        progress = 0.0 if begin is None else (time.time() - begin) / max(1.0, START + args.seconds - begin)
        if progress >= 1.0 and step > 3:
            break
        mix.fill_(1.0 if progress >= args.int4_from and lot.random() < 0.5 else 0.0)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss, balance = loss_of(next(batches))
            (loss + args.balance * balance).backward()
        opt.step(factor(step, progress))
        step += 1
        if step == 3:
            print(f"first steps done, loss {loss.item():.3f}, {time.time() - START:.1f} s after the start", flush=True)
            begin = last = time.time()
            last_step = step
        elif step % 250 == 0 or step in (10, 50):
            value = loss.item()
            now = time.time()
            rate = (step - last_step) * args.rows * ROW / (now - last)
            print(f"step {step:6d}  loss {value:.4f}  balance {balance.item():.3f}  {rate / 1e6:.2f} M tokens/s"
                  f"  {100 * progress:.1f} %", flush=True)
            last, last_step = now, step
    for layer in model.layers:
        layer.mix = None
    return {"steps": step, "tokens": step * args.rows * ROW, "seconds": round(time.time() - begin, 1),
            "seconds_with_start": round(time.time() - START, 1), "final_loss": loss.item()}


def save(args, model, tok):
    """The Hugging Face folder OUT/bf16."""
    folder = os.path.join(args.out, "bf16")
    save_tokenizer(tok, folder)
    eos, pad = tok.token_to_id("<|im_end|>"), tok.token_to_id("<|endoftext|>")
    generation = {"do_sample": False, "eos_token_id": [eos, pad], "pad_token_id": pad, "transformers_version": "4.57.6"}
    for name, value in (("config.json", model.s.hf_config(eos, pad)), ("generation_config.json", generation)):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            json.dump(value, f, indent=2)
            f.write("\n")
    save_file(to_hf(model), os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
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
    record = {"parameters": count, "args": vars(args),
              "device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}
    record.update(train(args, model, prefetch(stream, args.rows, device), device))
    chats, words, dropped = stream.stop()
    record.update(chats_generated=chats, word_problems_generated=words, dropped_as_held_out=dropped)
    folder = save(args, model, tok)
    with open(os.path.join(args.out, "training.json"), "w", encoding="utf-8") as f:
        json.dump(record, f, indent=2)
        f.write("\n")
    print(json.dumps(record), flush=True)
    if not args.no_evaluation:
        report = evaluate(folder, args.out, device)
        with open(os.path.join(args.out, "accuracy.json"), "w", encoding="utf-8") as f:
            json.dump(report, f, indent=2)
            f.write("\n")


if __name__ == "__main__":
    main()

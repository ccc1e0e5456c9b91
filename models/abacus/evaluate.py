# SPDX-License-Identifier: Apache-2.0
# Accuracy of a saved checkpoint: batched greedy answers with a key/value cache, in bf16, with W4A8 rounding, and with
# faults planted on purpose (the checkpoint must be sharp: a numerical fault must show). Called by train.py, or alone:
#   python3 evaluate.py TESTS FOLDER...
# Prompts are the chat template around the question (word problems) or around MMLU-Pro's own layout (multiple choice).

import copy
import json
import os
import re
import sys
import time

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from model import Model, Shape, from_hf, quantise_
from multiple_choice import render
from tokenizer import FastEncoder

MAX_NEW = 400


class Cache:
    """Keys and values of all layers, [B, kv heads, capacity, D]; filled from the left in step for all rows."""

    def __init__(self, shape, rows, capacity, device, dtype):
        self.at = self.new = 0
        size = (rows, shape.kv_heads, capacity, shape.head_dim)
        self.make = lambda: (torch.zeros(size, device=device, dtype=dtype), torch.zeros(size, device=device, dtype=dtype))
        self.layers = {}

    def append(self, layer, k, v):
        if id(layer) not in self.layers:
            self.layers[id(layer)] = self.make()
        keys, values = self.layers[id(layer)]
        end = self.at + k.shape[2]
        keys[:, :, self.at : end], values[:, :, self.at : end] = k.to(keys.dtype), v.to(values.dtype)
        return keys[:, :, :end], values[:, :, :end]


@torch.no_grad()
def generate(model, prompts, eos, pad, device, max_new=MAX_NEW):
    """Greedy continuations (lists of ids without eos) of prompts (lists of ids), all in one batch, padded left."""
    torch.backends.cuda.enable_cudnn_sdp(False)  # it would plan anew for every length of the cache
    width = max(map(len, prompts))
    rows = len(prompts)
    ids = torch.full((rows, width), pad)
    lead = torch.tensor([width - len(p) for p in prompts])
    for i, p in enumerate(prompts):
        ids[i, width - len(p) :] = torch.tensor(p)
    ids, lead = ids.to(device), lead.to(device)
    dtype = model.embed.dtype
    cache = Cache(model.s, rows, width + max_new, device, dtype)
    places = torch.arange(width + max_new, device=device)
    seen = places[None, :] >= lead[:, None]
    causal = places[None, :width] <= places[:width, None]
    mask = (causal[None] & seen[:, None, :width]) | torch.eye(width, dtype=torch.bool, device=device)
    positions = (places[None, :width] - lead[:, None]).clamp_min(0)
    hidden, _ = model(ids, positions, cache, mask[:, None])
    out, done = [], torch.zeros(rows, dtype=torch.bool, device=device)
    for step in range(max_new):
        token = torch.nn.functional.linear(hidden[:, -1], model.head).float().argmax(-1)
        token = torch.where(done, pad, token)
        done |= token == eos
        out.append(token)
        if step + 1 == max_new or (step % 8 == 7 and bool(done.all())):
            break
        cache.at = width + step
        mask = seen[:, None, None, : cache.at + 1]
        hidden, _ = model(token[:, None], (cache.at - lead)[:, None], cache, mask)
    return [[t for t in row if t not in (eos, pad)] for row in torch.stack(out, 1).tolist()]


def read_jsonl(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


class Tests:
    """The held-out problems with their prompts and how an answer is judged."""

    def __init__(self, folder, tok, limit=None):
        enc = FastEncoder(tok)
        self.tok = tok
        self.words = read_jsonl(os.path.join(folder, "gsm8k.jsonl"))[:limit]
        self.choices = read_jsonl(os.path.join(folder, "mmlu_pro.jsonl"))[: limit and limit // 2]
        self.prompts = [enc.prompt(w["question"]) for w in self.words]
        self.prompts += [enc.prompt(render(c["question"], c["options"])) for c in self.choices]
        self.eos, self.pad = enc.im_end, enc.end_of_text

    def judge(self, answers):
        """({steps: (right, n)}, (right, n) of multiple choice, wrong examples)."""
        by_steps, right, wrong = {}, 0, []
        for w, text in zip(self.words, answers):
            steps = w["answer"].count("\n")
            found = re.findall(r"#### (-?[0-9]+)", text)
            good = bool(found) and found[-1] == w["answer"].rsplit("#### ", 1)[1]
            a, n = by_steps.get(steps, (0, 0))
            by_steps[steps] = (a + good, n + 1)
            if not good:
                wrong.append((w["question"], w["answer"], text))
        for c, text in zip(self.choices, answers[len(self.words) :]):
            found = re.search(r"answer is \(?([A-J])\)?", text)
            good = bool(found) and found[1] == c["answer"]
            right += good
            if not good:
                wrong.append((c["question"] + " " + " ".join(c["options"]), c["cot_content"], text))
        return by_steps, (right, len(self.choices)), wrong

    def run(self, name, model, device, report, show=0):
        start = time.time()
        answers = [self.tok.decode(a) for a in generate(model, self.prompts, self.eos, self.pad, device)]
        by_steps, choice, wrong = self.judge(answers)
        right, n = (sum(v[i] for v in by_steps.values()) for i in (0, 1))
        report[name] = {"word_problems": right / n, "multiple_choice": choice[0] / max(1, choice[1]),
                        "by_steps": {str(k): v[0] / v[1] for k, v in sorted(by_steps.items())}}
        steps = "  ".join(f"{k}: {100 * v[0] / v[1]:5.1f}" for k, v in sorted(by_steps.items()))
        print(f"{name:34s} words {100 * right / n:6.2f} %  by steps {steps}  choice {100 * choice[0] / max(1, choice[1]):6.2f} %"
              f"  ({time.time() - start:.1f} s)", flush=True)
        for q, a, t in wrong[:show]:
            print(f"--- wrong\n{q}\n{a}\n--- got\n{t}", flush=True)


@torch.no_grad()
def scale_fault_(model):
    """As if one group's scales were 8 times too large in every expert: the first group of each gate, up and down."""
    for layer in model.layers:
        layer.gate_up[..., :128] *= 8
        layer.down[..., :128] *= 8


@torch.no_grad()
def group_row_fault_(model):
    """One group's scale, in one output row of gate_proj of every expert, 8 times too large."""
    for layer in model.layers:
        layer.gate_up[:, 0, 0, :128] *= 8


@torch.no_grad()
def gate_group_fault_(model):
    """The first group of gate_proj, all rows, in every expert of one layer: scales 8 times too large."""
    model.layers[1].gate_up[:, 0, :, :128] *= 8


@torch.no_grad()
def swap_fault_(model):
    """gate_proj and up_proj exchanged in one layer."""
    model.layers[1].gate_up.copy_(model.layers[1].gate_up.flip(1))


@torch.no_grad()
def nibble_fault_(model):
    """Neighbouring input channels exchanged in gate and up of one layer (a wrong nibble order)."""
    w = model.layers[1].gate_up
    w.copy_(w.view(*w.shape[:-1], -1, 2).flip(-1).reshape(w.shape))


FAULTS = {"fault: group scales x8, all experts": scale_fault_, "fault: gate scales x8, one layer": gate_group_fault_,
          "fault: gate and up swapped, one layer": swap_fault_, "fault: nibble pairs swapped, one layer": nibble_fault_,
          "fault: x8 in one row of gates": group_row_fault_}


def load(folder, device):
    """(model in bf16, tokenizer) of a saved folder."""
    tok = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    shape = Shape(vocab=config["vocab_size"], layers=config["num_hidden_layers"])
    model = Model(shape).to(torch.bfloat16)
    from_hf(model, load_file(os.path.join(folder, "model.safetensors")))
    fresh = Model(shape)  # the RoPE tables stay in float32
    model.cos, model.sin = fresh.cos, fresh.sin
    return model.to(device), tok


def evaluate(folder, tests_folder, device, limit=None, show=3):
    """Prints and returns the accuracies of the checkpoint in `folder`: bf16 and W4A8."""
    model, tok = load(folder, device)
    tests, report = Tests(tests_folder, tok, limit), {}
    tests.run("bf16", model, device, report, show)
    tests.run("w4a8 (rounded)", quantise_(model), device, report)
    return report


def evaluate_faults(folder, tests_folder, device, limit=None):
    """Prints and returns the accuracies of the W4A8 checkpoint with one fault at a time."""
    model, tok = load(folder, device)
    quantise_(model)
    tests, report = Tests(tests_folder, tok, limit), {}
    for name, plant in FAULTS.items():
        broken = copy.deepcopy(model)
        plant(broken)
        tests.run(name, broken, device, report)
    return report


def evaluate_all(folders, tests_folder, device, limit=None):
    """Judges several checkpoints, first all of them as they are, then with faults; writes TESTS/accuracy.json."""
    report = {}
    for judge in (evaluate, evaluate_faults):
        for folder in folders:
            name = os.path.basename(os.path.normpath(folder))
            print(f"== {name}", flush=True)
            report.setdefault(name, {}).update(judge(folder, tests_folder, device, limit))
            with open(os.path.join(tests_folder, "accuracy.json"), "w", encoding="utf-8") as f:
                json.dump(report, f, indent=2)
                f.write("\n")


if __name__ == "__main__":
    evaluate_all(sys.argv[2:], sys.argv[1], "cuda" if torch.cuda.is_available() else "cpu")

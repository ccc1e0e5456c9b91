#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Answers questions with a model: one streamed, then all in one batch with the probability of each answer's tokens.

usage: generate.py MODEL QUESTION...     (models/abacus/w4a8 is a model that does arithmetic)
"""
import argparse
import math
import sys

import quadrille


def show_progress(what: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{100 * done // max(total, 1):3} % {what[:60]:60}", end="\r", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("questions", nargs="+", metavar="QUESTION")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    arguments = parser.parse_args()
    with quadrille.Model.load(arguments.model, device=arguments.device, progress=show_progress) as model:
        print(arguments.questions[0])
        for piece in model.chat([{"role": "user", "content": arguments.questions[0]}], stream=True):
            print(piece.text, end="", flush=True)
        print("\n")

        prompts = []
        for question in arguments.questions:
            text = model.tokenizer.apply_chat_template([{"role": "user", "content": question}])
            prompts.append(model.tokenizer.encode(text, add_special_tokens=False))
        for question, answer in zip(arguments.questions, model.generate(prompts, logprobs=0)):
            mean = sum(token.logprob for token in answer.tokens) / max(len(answer.tokens), 1)
            last_line = answer.text.strip().splitlines()[-1] if answer.text.strip() else "(nothing)"
            print(f"{question}\n  {last_line}   ({len(answer.tokens)} tokens, mean probability {math.exp(mean):.3f})")


if __name__ == "__main__":
    main()

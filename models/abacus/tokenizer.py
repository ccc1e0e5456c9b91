# SPDX-License-Identifier: Apache-2.0
# The tokenizer: byte-level BPE with Qwen2's split pattern (digits one by one), trained on generated text, its chat
# template (ChatML), and a fast encoder for the training stream that is checked against the real one.

import json
import os
import random
import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from multiple_choice import multiple_choice, render
from problems import Draw, word_problem

VOCAB_SIZE = 2000
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
           r"|\s+(?!\S)|\s+")
ASCII_PATTERN = re.compile(PATTERN.replace(r"^\s\p{L}\p{N}", r"^\sA-Za-z0-9").replace(r"\r\n\p{L}\p{N}", r"\r\nA-Za-z0-9")
                           .replace(r"\p{L}", "[A-Za-z]").replace(r"\p{N}", "[0-9]"), re.ASCII)

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- endif %}"
)


def sample_texts(seed, n):
    """Generated text for the BPE trainer: three word problems to one multiple-choice question."""
    r = Draw(random.Random(f"tokenizer {seed}"))
    for i in range(n):
        if i % 4:
            question, answer, _ = word_problem(r)
            yield "user\n" + question
        else:
            stem, options, _, answer, _ = multiple_choice(r)
            yield "user\nQuestion: " + render(stem, options)
        yield "assistant\n" + answer
    yield "system\nYou are a helpful assistant.\nAnswer:"


def train_tokenizer(seed, n=24_000):
    """A tokenizers.Tokenizer of at most VOCAB_SIZE tokens, the special ones last."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tok.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tok.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE - len(SPECIAL), min_frequency=2, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(sample_texts(seed, n), trainer)
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    return tok


def save_tokenizer(tok, folder):
    """Writes tokenizer.json and the files beside it that Hugging Face loaders read."""
    os.makedirs(folder, exist_ok=True)
    tok.save(os.path.join(folder, "tokenizer.json"))
    decoder = {str(tok.token_to_id(s)): {"content": s, "lstrip": False, "normalized": False, "rstrip": False,
                                         "single_word": False, "special": True} for s in SPECIAL}
    config = {"add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": decoder,
              "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": None,
              "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>",
              "errors": "replace", "model_max_length": 2048, "pad_token": "<|endoftext|>", "split_special_tokens": False,
              "tokenizer_class": "Qwen2Tokenizer", "unk_token": None}
    special = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|im_end|>",
               "pad_token": "<|endoftext|>"}
    for name, value in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            json.dump(value, f, indent=2)
            f.write("\n")


class FastEncoder:
    """Encodes ASCII chats to ids with a cache of pieces; the same ids as the tokenizer (see check)."""

    def __init__(self, tok):
        self.tok = tok
        self.cache = {}
        self.end_of_text, self.im_start, self.im_end = (tok.token_to_id(s) for s in SPECIAL)
        self.user = [self.im_start, *self.text("user\n")]
        self.between = [self.im_end, *self.text("\n"), self.im_start, *self.text("assistant\n")]
        self.end = [self.im_end, *self.text("\n")]

    def text(self, text):
        out = []
        cache = self.cache
        for piece in ASCII_PATTERN.findall(text):
            ids = cache.get(piece)
            if ids is None:
                ids = cache[piece] = self.tok.encode(piece, add_special_tokens=False).ids
            out += ids
        return out

    def prompt(self, user):
        """What the model sees before it answers."""
        return self.user + self.text(user) + self.between

    def chat(self, user, answer):
        """(ids, number of ids before the answer, number of ids with the answer and <|im_end|>)."""
        ids = self.prompt(user)
        start = len(ids)
        ids += self.text(answer)
        stop = len(ids) + 1
        ids += self.end
        return ids, start, stop

    def check(self, user, answer):
        """Raises where the fast ids differ from those of the tokenizer on the rendered chat."""
        whole = f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        if self.tok.encode(whole, add_special_tokens=False).ids != self.chat(user, answer)[0]:
            raise RuntimeError(f"fast encoder and tokenizer differ on: {whole!r}")

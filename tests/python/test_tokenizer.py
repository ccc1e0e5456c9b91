# SPDX-License-Identifier: Apache-2.0
"""quadrille.Tokenizer: the program's own answers, and what it refuses."""
import json

import numpy
import pytest

import quadrille

TEXTS = ["A farm has 12 crates of 34 eggs.", "", "<|im_start|>user\nhi<|im_end|>", "Größe 😀 \t end", "a\0b"]


@pytest.fixture(scope="module")
def tokenizer(abacus):
    return quadrille.Tokenizer.load(abacus / "w4a8")


def test_encode_and_decode_are_those_of_the_command(tokenizer, abacus, command):
    expected = command("tokenize", abacus / "w4a8", input="\n".join(map(json.dumps, TEXTS)) + "\n").splitlines()
    assert len(expected) == len(TEXTS)
    for text, line in zip(TEXTS, expected):
        ids = tokenizer.encode(text)
        assert ids == json.loads(line)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(numpy.array(ids, numpy.int64)) == text


def test_special_tokens(tokenizer):
    start, end = tokenizer.token_id("<|im_start|>"), tokenizer.token_id("<|im_end|>")
    assert (start, end) == (1998, 1999)
    assert tokenizer.is_special(end) and not tokenizer.is_special(5)
    assert tokenizer.token_text(end) == "<|im_end|>" and tokenizer.token_text(10**6) == ""
    assert tokenizer.token_id("no such token") is None
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (None, end, 2000)
    ids = tokenizer.encode("<|im_start|>hi<|im_end|>")
    assert ids[0] == start and ids[-1] == end
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hi"
    plain = tokenizer.encode("<|im_start|>hi<|im_end|>", parse_special=False)
    assert start not in plain and tokenizer.decode(plain) == "<|im_start|>hi<|im_end|>"


def test_chat_template_is_that_of_the_command(tokenizer, abacus, command):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1 \"quoted\" é?"}]
    expected = json.loads(command("template", abacus / "w4a8", input=json.dumps(messages) + "\n"))
    assert tokenizer.has_chat_template
    assert tokenizer.apply_chat_template(messages) == expected
    without = tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    assert expected == without + "<|im_start|>assistant\n"


def test_what_is_refused(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer.json"):
        quadrille.Tokenizer.load(tmp_path)
    with pytest.raises(TypeError, match=r"ids\[1\]: expected an integer, found float"):
        tokenizer.decode([1, 2.5])
    with pytest.raises(TypeError, match="ids: expected token ids, found str"):
        tokenizer.decode("12")
    with pytest.raises(ValueError, match=r"ids\[0\]: expected an integer of 0 to 2147483647, found -1"):
        tokenizer.decode([-1])
    with pytest.raises(TypeError, match="text: expected a str, found bytes"):
        tokenizer.encode(b"hi")
    with pytest.raises(ValueError, match="content"):
        tokenizer.apply_chat_template([{"role": "user"}])

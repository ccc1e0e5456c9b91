#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The parts of the comparison that run without llama.cpp: options, the GGUF writer, the counts and the table."""
import dataclasses
import io
import math
import random
import struct
import tempfile
import unittest
from contextlib import redirect_stderr
from pathlib import Path

import gguf
import llama_cpp

TINY = dataclasses.replace(llama_cpp.SHAPES["qwen3-30b-a3b"], hidden=64, heads=2, kv_heads=1, head_dim=32, experts=4,
                           top_k=2, expert_width=32, layers=2, vocabulary=96)


class Reader:
    """Reads a GGUF file back by the format's own words, apart from the writer."""

    def __init__(self, data):
        self.file = io.BytesIO(data)
        assert self.file.read(4) == b"GGUF"
        self.version, num_tensors, num_values = self.take("<IQQ")
        self.values = {self.text(): self.value() for _ in range(num_values)}
        self.tensors = {}
        for _ in range(num_tensors):
            name, (rank,) = self.text(), self.take("<I")
            dims = self.take(f"<{rank}Q")
            kind, offset = self.take("<IQ")
            self.tensors[name] = (dims, kind, offset)
        self.data_begin = -(-self.file.tell() // 32) * 32

    def take(self, form):
        return struct.unpack(form, self.file.read(struct.calcsize(form)))

    def text(self):
        (size,) = self.take("<Q")
        return self.file.read(size).decode()

    def value(self):
        (kind,) = self.take("<I")
        return {4: lambda: self.take("<I")[0], 6: lambda: self.take("<f")[0], 8: self.text}[kind]()


class Gguf(unittest.TestCase):
    def setUp(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tiny.gguf"
            gguf.write(path, TINY, seed=3)
            self.data = path.read_bytes()
        self.reader = Reader(self.data)

    def test_metadata(self):
        values = self.reader.values
        self.assertEqual(self.reader.version, 3)
        self.assertEqual(values["general.architecture"], "qwen3moe")
        self.assertEqual(values["qwen3moe.block_count"], 2)
        self.assertEqual(values["qwen3moe.vocab_size"], 96)
        self.assertEqual(values["qwen3moe.expert_used_count"], 2)

    def test_tensors_follow_each_other_to_the_end(self):
        at = 0
        for dims, kind, offset in self.reader.tensors.values():
            self.assertEqual(offset, at)
            count = math.prod(dims)
            at += -(-(count * 4 if kind == 0 else count // 32 * 18) // 32) * 32
        self.assertEqual(self.reader.data_begin + at, len(self.data))
        self.assertEqual(self.reader.tensors["blk.1.ffn_down_exps.weight"][0], (32, 64, 4))
        self.assertEqual(len(self.reader.tensors), 3 + 2 * 12)

    def test_weights_have_the_deviation(self):
        blocks = gguf.q4_0_blocks(random.Random(1), 4096, 1 / math.sqrt(2048))
        total = 0.0
        for i in range(4096):
            scale, *codes = struct.unpack_from("<e16B", blocks, i * 18)
            total += sum((scale * (nibble - 8)) ** 2 for code in codes for nibble in (code & 15, code >> 4))
        # The scales share a quarter of a binade with the wanted one.
        self.assertLess(abs(math.log(math.sqrt(total / 4096 / 32) * math.sqrt(2048))), math.log(1.25))


class Counts(unittest.TestCase):
    def test_bytes_a_token_by_hand(self):
        shape = llama_cpp.SHAPES["qwen3-30b-a3b"]
        attention = 2 * 2048 * 4096 + 2 * 2048 * 512
        weights = 4 * (attention + 8 * 3 * 2048 * 768) + 2048 * 32768
        self.assertEqual(shape.bytes_a_token(0), weights * 18 // 32 + 4 * 2048 * 128 * 4)
        self.assertEqual(shape.bytes_a_token(100) - shape.bytes_a_token(0), 100 * 4 * 2 * 512 * 2)


class Program(unittest.TestCase):
    def test_commands(self):
        arguments = llama_cpp.parse(["--context", "0", "2048", "--decode", "8"])
        decode, deep, prefill = llama_cpp.cases_of(arguments)
        self.assertEqual(llama_cpp.peer_command("b", "m", 2, deep, ["-fa", "1"], 3)[-7:],
                         [0, "-n", 8, "-d", 2048, "-fa", "1"])
        self.assertEqual(llama_cpp.peer_command("b", "m", 2, prefill, [], 3)[-4:], ["-p", 512, "-n", 0])
        ours = llama_cpp.our_command("q", llama_cpp.SHAPES["qwen3-30b-a3b"], arguments)
        self.assertEqual(ours[ours.index("--context") + 1], "1,2048")
        self.assertEqual(len(llama_cpp.variants()), 4)

    def test_bad_options(self):
        for words in (["--rounds", "0"], ["--context", "-1"], ["--shape", "nosuch"]):
            with self.subTest(words=words), redirect_stderr(io.StringIO()), self.assertRaises(SystemExit):
                llama_cpp.parse(words)

    def test_verdicts(self):
        shape = llama_cpp.SHAPES["qwen3-30b-a3b"]
        for ours, verdict in ((149.0, "FAIL"), (150.0, "pass")):
            case = llama_cpp.Case("decode", 32, 0, 1.5, ours=[ours, 1.0, 1000.0], peer=[100.0], switches=["-fa", "1"],
                                  our_bytes=[2e8], ceilings=[3e10], our_rates=[2e10])
            self.assertAlmostEqual(case.ratio(), ours / 100)
            (row,) = llama_cpp.rows_of(shape, [case])
            self.assertIn(verdict, row)
            self.assertEqual(len(row), len(llama_cpp.HEAD))
            self.assertIn("67 %", row)

    def test_series_are_taken_by_context(self):
        series = {"tokens_per_second": 5.0, "reached_per_second": 1.0, "ceiling_per_second": 2.0, "work": 3.0}
        answer = {"decode_by_context": [dict(series, context=1), dict(series, context=2048, tokens_per_second=4.0)],
                  "prefill": dict(series, tokens_per_second=9.0)}
        rates = []
        for case in llama_cpp.cases_of(llama_cpp.parse([])):
            llama_cpp.take_ours(case, answer)
            rates += case.ours
        self.assertEqual(rates, [5.0, 4.0, 9.0])


if __name__ == "__main__":
    unittest.main()

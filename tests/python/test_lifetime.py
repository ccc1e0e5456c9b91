# SPDX-License-Identifier: Apache-2.0
"""Objects die in any order, at interpreter exit, in a forked child and under daemon threads; memory stays flat."""
import itertools
import os
import weakref
from pathlib import Path

import numpy
import pytest

import quadrille


def clean(process, timeout=120):
    """The output of a child that must end by itself, silently."""
    output, errors = process.communicate(timeout=timeout)
    assert (errors, process.returncode) == ("", 0)
    return output


def test_objects_die_in_any_order(abacus):
    for order in itertools.permutations(["model", "tokenizer", "stream", "logits"]):
        alive = {"model": quadrille.Model.load(abacus / "w4a8", threads=1)}
        alive["tokenizer"] = alive["model"].tokenizer
        alive["stream"] = alive["model"].generate([5, 6], max_tokens=2000, ignore_eos=True, stream=True)
        next(alive["stream"])
        alive["logits"] = alive["model"].logits([5, 6])
        alive["view"] = numpy.from_dlpack(alive["logits"])
        first = float(alive["view"][0, 0])
        seen = weakref.ref(alive["model"])
        for name in order:
            del alive[name]
            assert float(alive["view"][0, 0]) == first
            if "tokenizer" in alive:
                assert alive["tokenizer"].decode([1999]) == "<|im_end|>"
            if "stream" in alive:
                assert next(alive["stream"]).tokens
        assert seen() is None


EXIT = """
import sys, threading, time, quadrille
model = quadrille.Model.load(sys.argv[1], threads=1)
tokenizer = model.tokenizer
logits = model.logits([5, 6])
stream = model.generate([5, 6], max_tokens=1900, ignore_eos=True, stream=True)
next(stream)
"""
ENDINGS = {
    "as it is": "",
    "in a cycle": "box = [model]; box.append(box); streams = [stream]; streams.append(streams)",
    "kept by a module": "import json; json.kept = [logits, stream, tokenizer, model]",
    "a closed model": "model.close()",
    "sys.exit": "sys.exit(0)",
    "used by atexit": "import atexit; atexit.register(lambda: print(tokenizer.decode([1999])))",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_interpreter_exit(abacus, child, ending):
    clean(child(EXIT + ENDINGS[ending], abacus / "w4a8"))


DAEMONS = """
import sys, threading, time, quadrille
model = quadrille.Model.load(sys.argv[1], threads=1)
def generate():
    while True:
        model.generate([5, 6], max_tokens=50, ignore_eos=True)
def logits():
    while True:
        model.logits(list(range(300)))
def encode():
    while True:
        model.tokenizer.encode("some words of a text")
def report():
    while True:
        model.logits(list(range(300)), progress=lambda *_: sum(range(20000)))
for work in (generate, generate, logits, encode, encode, report):
    threading.Thread(target=work, daemon=True).start()
time.sleep(float(sys.argv[2]))
"""


def test_exit_under_daemon_threads(abacus, child):
    for i in range(10):
        clean(child(DAEMONS, abacus / "w4a8", 0.1 + 0.013 * i))


def test_a_forked_child(abacus, child):
    output = clean(child("""
import os, sys, warnings, quadrille
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons advise against forks beside threads
model = quadrille.Model.load(sys.argv[1], threads=1)
stream = model.generate([5, 6], max_tokens=1900, ignore_eos=True, stream=True)
next(stream)
if os.fork() == 0:
    try:
        model.generate([5])
    except RuntimeError as error:
        print(error)
    print(model.tokenizer.decode([1999]))
    del model, stream
    sys.exit(0)
status = os.wait()[1]
print("child", status, len(stream.answers()[0].ids))
""", abacus / "w4a8"))
    assert output == ("the model belongs to the process that forked this one; load it after the fork\n<|im_end|>\n"
                      "child 0 1900\n")


def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(call, warm, count):
    """How much resident memory `count` calls add after `warm` of them: a leak adds in each of two rounds."""
    for _ in range(warm):
        call()
    added = []
    for _ in range(2):
        before = resident_bytes()
        for _ in range(count):
            call()
        added.append(resident_bytes() - before)
    return min(added)


def small_layer():
    experts, hidden, width, group = 4, 128, 64, 32
    random = numpy.random.default_rng(5)
    codes = lambda *shape: random.integers(-2**31, 2**31, shape, dtype=numpy.int64).astype(numpy.int32)
    scales = lambda *shape: (random.uniform(0.01, 0.02, shape).astype(numpy.float32).view(numpy.uint32) >> 16).astype(
        numpy.uint16)
    layer = quadrille.MoELayer.from_tensors(
        codes(experts, 2 * width, hidden // 8), scales(experts, 2 * width, hidden // group),
        codes(experts, hidden, width // 8), scales(experts, hidden, width // group),
        format="uint4b8", group_size=group, router={"top_k": 2})
    x = random.standard_normal((3, hidden)).astype(numpy.float32)
    logits = random.standard_normal((3, experts)).astype(numpy.float32)
    return layer, x, logits


def layer_growth(with_out):
    layer, x, logits = small_layer()
    out = numpy.empty_like(x) if with_out else None
    return growth(lambda: layer(x, logits, out=out), 2000, 10_000)


def model_growth(call, warm, count):
    folder = Path(__file__).resolve().parents[2] / "models" / "abacus" / "w4a8"
    with quadrille.Model.load(folder, threads=1) as model:
        return growth(lambda: call(model), warm, count)


def refused(model):
    with pytest.raises(ValueError):
        model.generate([5], temperature=-1.0)


GROWTHS = {
    "layer": lambda: layer_growth(False),
    "layer with out=": lambda: layer_growth(True),
    "tokenizer": lambda: model_growth(lambda m: m.tokenizer.decode(m.tokenizer.encode("some words")), 1000, 10_000),
    "generate": lambda: model_growth(lambda m: m.generate([5, 6], max_tokens=2, logprobs=2), 500, 2000),
    "a stream left": lambda: model_growth(lambda m: next(m.generate([5, 6], max_tokens=9, stream=True)), 500, 2000),
    "logits": lambda: model_growth(lambda m: m.logits([5, 6]), 500, 2000),
    "refused": lambda: model_growth(refused, 500, 2000),
}


@pytest.mark.parametrize("name", GROWTHS)
def test_memory_stays_flat(child, name):
    source = ("import sys; sys.path.insert(0, sys.argv[1]); from test_lifetime import GROWTHS\n"
              "print(GROWTHS[sys.argv[2]]())")
    added = int(clean(child(source, Path(__file__).parent, name)))
    assert added < 256 << 10  # over 10,000 layer calls 26 bytes a call: less than any object of Python's

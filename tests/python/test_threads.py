# SPDX-License-Identifier: Apache-2.0
"""Threads: two engines at once, many threads on one model, the interpreter lock, Ctrl-C."""
import signal
import threading
import time

import numpy
import pytest

import quadrille


def run_all(functions):
    """Runs the functions in threads of their own and raises what one of them raised."""
    errors = []

    def guard(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guard, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_two_threads_with_two_engines(abacus, model):
    prompts = [[5 + i, 6, 7] for i in range(8)]
    expected = {"exact": model.generate(prompts, max_tokens=40)}
    with quadrille.Model.load(abacus / "w4a8", numerics="vllm") as other:
        expected["vllm"] = other.generate(prompts, max_tokens=40)
    assert expected["exact"] != expected["vllm"]

    def work(numerics):
        for _ in range(3):
            with quadrille.Model.load(abacus / "w4a8", numerics=numerics, threads=1) as own:
                assert own.generate(prompts, max_tokens=40) == expected[numerics]

    run_all([lambda: work("exact"), lambda: work("vllm")])


def test_many_threads_on_one_model(model):
    expected = [model.generate([5, i], max_tokens=30) for i in range(8)]
    ids = list(range(64))
    logits = numpy.from_dlpack(model.logits(ids))

    def work(i):
        for _ in range(4):
            assert model.generate([5, i], max_tokens=30) == expected[i]
            if i % 4 == 0:
                assert numpy.array_equal(numpy.from_dlpack(model.logits(ids)), logits)

    run_all([lambda i=i: work(i) for i in range(8)])


def ticks_during(call):
    """How often another thread came to run, well inside of `call`, which must take 0.2 s or more."""
    ticks, over = [], threading.Event()

    def tick():
        while not over.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.002)

    ticker = threading.Thread(target=tick)
    ticker.start()
    begin = time.monotonic()
    call()
    end = time.monotonic()
    over.set()
    ticker.join()
    assert end - begin > 0.2, "too short to see anything"
    return sum(begin + 0.04 < at < end - 0.04 for at in ticks), end - begin


def slow_layer():
    """A layer call without a callback that takes a while."""
    hidden = width = 512
    words = numpy.full((4, 2 * width, hidden // 8), 0x12345678, numpy.int32)
    scales = numpy.full((4, 2 * width, hidden // 128), 0x3C00, numpy.uint16)  # bf16
    layer = quadrille.MoELayer.from_tensors(words, scales, words[:, :hidden], scales[:, :hidden], format="uint4b8",
                                            group_size=128, router={"top_k": 2}, kernels="ref", threads=1)
    x = numpy.ones((400, hidden), numpy.float32)
    logits = numpy.tile(numpy.arange(4, dtype=numpy.float32), (400, 1))
    return lambda: layer(x, logits)


@pytest.mark.parametrize("name", ["generate", "logits", "layer"])
def test_other_threads_run_while_we_compute(abacus, name):
    with quadrille.Model.load(abacus / "w4a8", kernels="ref", threads=1) as slow:
        calls = {"generate": lambda: slow.generate([5] * 500, max_tokens=30, ignore_eos=True),
                 "logits": lambda: slow.logits([5] * 500), "layer": slow_layer()}
        count, seconds = ticks_during(calls[name])
    # A call that holds the lock lets the ticker in at its callbacks alone, every 50 ms.
    assert count > 3 * seconds / 0.05


def test_cancel_from_another_thread(model):
    stream = model.generate([[5], [6]], max_tokens=1900, ignore_eos=True, stream=True)
    next(stream)
    thread = threading.Thread(target=stream.cancel)
    thread.start()
    answers = stream.answers()
    thread.join()
    assert [answer.finish for answer in answers] == ["cancelled", "cancelled"]


CTRL_C = """
import sys, time, quadrille
model = quadrille.Model.load(sys.argv[1], threads=1, kernels="ref", max_batch_tokens=64)
calls = {
    "generate": lambda: model.generate([[5, i] for i in range(50)], max_tokens=1500, ignore_eos=True),
    "stream": lambda: [piece for piece in model.generate([5], max_tokens=1900, ignore_eos=True, stream=True)],
    "chat": lambda: model.chat([{"role": "user", "content": "hi"}], max_tokens=1900, ignore_eos=True),
    "logits": lambda: [model.logits(list(range(2000))) for _ in range(100)],
}
print("begun", flush=True)
try:
    calls[sys.argv[2]]()
    print("ended by itself")
except KeyboardInterrupt:
    print("interrupted", flush=True)
    answer = model.generate([5, 6], max_tokens=3, ignore_eos=True)
    metrics = model.metrics()
    print(len(answer.ids), metrics["running"], metrics["waiting"])
"""


@pytest.mark.parametrize("name", ["generate", "stream", "chat", "logits"])
def test_ctrl_c_ends_it_and_the_model_goes_on(abacus, child, name):
    process = child(CTRL_C, abacus / "w4a8", name)
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.4)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "interrupted\n"
    assert time.monotonic() - sent < 2
    output, errors = process.communicate(timeout=60)
    assert (output.split(), errors, process.returncode) == (["3", "0", "0"], "", 0)


def test_ctrl_c_that_nobody_catches_ends_the_program(abacus, child):
    process = child("import sys, quadrille\n"
                    "model = quadrille.Model.load(sys.argv[1], threads=1, kernels='ref')\n"
                    "print('begun', flush=True)\n"
                    "model.generate([[5, i] for i in range(50)], max_tokens=1500, ignore_eos=True)\n", abacus / "w4a8")
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors and process.returncode == -signal.SIGINT


def test_a_handler_that_does_not_raise_lets_it_go_on(abacus, child):
    process = child("import signal, sys, quadrille\n"
                    "signal.signal(signal.SIGUSR1, lambda *_: print('seen', flush=True))\n"
                    "model = quadrille.Model.load(sys.argv[1], threads=1, kernels='ref')\n"
                    "print('begun', flush=True)\n"
                    "print(len(model.generate([5] * 10, max_tokens=200, ignore_eos=True).ids))\n", abacus / "w4a8")
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGUSR1)
    output, errors = process.communicate(timeout=60)
    assert (output.split(), errors, process.returncode) == (["seen", "200"], "", 0)

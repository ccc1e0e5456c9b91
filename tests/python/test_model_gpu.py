# SPDX-License-Identifier: Apache-2.0
"""quadrille.Model on a Hopper GPU: the program's own texts and logits there, batches, cancel, Ctrl-C, two engines."""
import json
import signal
import threading
import time

import numpy
import pytest

import quadrille


@pytest.fixture(scope="module")
def gpu_model(abacus):
    try:
        loaded = quadrille.Model.load(abacus / "w4a8", device="cuda", gpu_memory="4GiB")
    except NotImplementedError as error:
        pytest.skip(str(error))
    with loaded:
        yield loaded


@pytest.fixture(scope="module")
def questions(abacus):
    return [json.loads(line)["question"] for line in (abacus / "gsm8k.jsonl").read_text().splitlines()[:16]]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_p": 0.95, "seed": 7}])
def test_answers_are_those_of_the_command(gpu_model, abacus, command, questions, sampling):
    flags = [part for name, value in sampling.items() for part in (f"--{name.replace('_', '-')}", value)]
    expected = json.loads(command("run", abacus / "w4a8", questions[0], "--json", "-q", "--device", "cuda", *flags))
    answer = gpu_model.chat([{"role": "user", "content": questions[0]}], **sampling)
    assert (answer.text, answer.ids, answer.finish) == (expected["text"], expected["ids"], expected["finish"])
    assert gpu_model.describe()["device"].startswith("cuda")


def test_a_batch_answers_as_one_by_one(gpu_model, questions):
    prompts = [gpu_model.tokenizer.encode(question) for question in questions]
    batch = gpu_model.generate(prompts, max_tokens=60, temperature=0.8, seed=3)
    assert batch == [gpu_model.generate(prompt, max_tokens=60, temperature=0.8, seed=3) for prompt in prompts]


def test_logits_and_log_probabilities(gpu_model, abacus, questions):
    ids = gpu_model.tokenizer.encode(questions[1])
    logits = numpy.from_dlpack(gpu_model.logits(ids))
    assert logits.shape == (len(ids), 2000) and numpy.isfinite(logits).all()
    with quadrille.Model.load(abacus / "w4a8") as cpu:
        theirs = numpy.from_dlpack(cpu.logits(ids))
    # Two devices add in other orders (docs/cli.md, verify): most positions choose the same token.
    assert (logits.argmax(axis=1) == theirs.argmax(axis=1)).mean() > 0.9
    answer = gpu_model.generate(ids, max_tokens=5, logprobs=2)
    again = gpu_model.generate(ids, max_tokens=5)
    assert answer.ids == again.ids and all(token.logprob == token.top[0].logprob for token in answer.tokens)


def test_cancel_and_go_on(gpu_model):
    stream = gpu_model.generate([[5], [6], [7]], max_tokens=1900, ignore_eos=True, stream=True)
    next(stream)
    stream.cancel()
    assert [answer.finish for answer in stream.answers()] == ["cancelled"] * 3
    assert len(gpu_model.generate([5], max_tokens=7, ignore_eos=True).ids) == 7


def test_a_cpu_and_a_gpu_engine_at_once(gpu_model, model, questions):
    answers = {}

    def work(name, engine):
        answers[name] = [engine.generate(question, max_tokens=40) for question in questions[:8]]

    engines = {"gpu": gpu_model, "cpu": model}
    expected = {name: [engine.generate(question, max_tokens=40) for question in questions[:8]]
                for name, engine in engines.items()}
    threads = [threading.Thread(target=work, args=pair) for pair in engines.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == expected


def test_ctrl_c(gpu_model, abacus, child):
    process = child("import sys, quadrille\n"
                    "model = quadrille.Model.load(sys.argv[1], device='cuda', gpu_memory='4GiB')\n"
                    "print('begun', flush=True)\n"
                    "try:\n"
                    "    while True:\n"
                    "        model.generate([[5, i] for i in range(64)], max_tokens=1900, ignore_eos=True)\n"
                    "except KeyboardInterrupt:\n"
                    "    print(len(model.generate([5], max_tokens=3, ignore_eos=True).ids))\n", abacus / "w4a8")
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (output, errors, process.returncode) == ("3\n", "", 0)

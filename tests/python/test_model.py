# SPDX-License-Identifier: Apache-2.0
"""quadrille.Model on the bundled model: the program's own texts and logits, batches, streams, log-probabilities."""
import json
import math
import os

import numpy
import pytest

import quadrille


@pytest.fixture(scope="module")
def problems(abacus):
    lines = (abacus / "gsm8k.jsonl").read_text().splitlines()[:12]
    return [json.loads(line)["question"] for line in lines]


def chat_prompt(model, question):
    text = model.tokenizer.apply_chat_template([{"role": "user", "content": question}])
    return model.tokenizer.encode(text, add_special_tokens=False)


def read_safetensors(path):
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["dtype"] == "F32"
            begin, end = entry["data_offsets"]
            tensors[name] = numpy.frombuffer(data[8 + size + begin:8 + size + end], "<f4").reshape(entry["shape"])
    return tensors


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "min_p": 0.01,
                                          "repetition_penalty": 1.1, "seed": 7}])
def test_answers_are_those_of_the_command(model, abacus, command, problems, sampling):
    for question in problems[:2]:
        flags = [part for name, value in sampling.items() for part in (f"--{name.replace('_', '-')}", value)]
        expected = json.loads(command("run", abacus / "w4a8", question, "--json", "-q", *flags))
        answer = model.chat([{"role": "user", "content": question}], **sampling)
        assert (answer.text, answer.ids, answer.finish) == (expected["text"], expected["ids"], expected["finish"])
        assert len(answer.prompt_ids) == expected["prompt_tokens"]


def test_plain_text_is_continued_as_raw_runs_do(model, abacus, command):
    expected = json.loads(command("run", abacus / "w4a8", "Tons lost: 63 * 38 =", "--raw", "--json", "-q",
                                  "--max-tokens", 20))
    answer = model.generate("Tons lost: 63 * 38 =", max_tokens=20)
    assert (answer.text, answer.ids, answer.finish) == (expected["text"], expected["ids"], expected["finish"])


def test_a_batch_answers_as_one_by_one(model, problems):
    prompts = [chat_prompt(model, question) for question in problems]
    batch = model.generate(prompts, temperature=0.8, seed=3, logprobs=2)
    assert len({answer.text for answer in batch}) == len(prompts)
    for prompt, answer in zip(prompts, batch):
        alone = model.generate(prompt, temperature=0.8, seed=3, logprobs=2)
        assert alone == answer  # tokens and log-probabilities bit for bit
        assert answer.prompt_ids == prompt


def test_more_prompts_than_the_engine_knows_at_a_time(model):
    prompts = [[3 + i % 50, 7] for i in range(600)]
    answers = model.generate(prompts, max_tokens=1)
    assert [answer.prompt_ids for answer in answers] == prompts
    assert all(len(answer.tokens) <= 1 and answer.finish in ("length", "stop") for answer in answers)
    assert answers[0].ids == answers[50].ids


def test_stream_gives_the_same_text_in_pieces(model, problems):
    prompts = [chat_prompt(model, question) for question in problems[:3]]
    whole = model.generate(prompts)
    texts, tokens, ends = [""] * 3, [[], [], []], {}
    pieces = 0
    for piece in model.generate(prompts, stream=True):
        assert piece.index not in ends
        texts[piece.index] += piece.text
        tokens[piece.index] += piece.tokens
        if piece.finish is not None:
            ends[piece.index] = piece.finish
        pieces += 1
    assert texts == [answer.text for answer in whole]
    assert tokens == [answer.tokens for answer in whole]
    assert ends == {i: answer.finish for i, answer in enumerate(whole)}
    assert pieces > 3


def test_a_stream_comes_while_the_answer_goes_on(model):
    with model.generate([5, 6, 7], max_tokens=1500, ignore_eos=True, stream=True) as stream:
        first = next(stream)
        assert first.finish is None and 1 <= len(first.tokens) < 1500
    with pytest.raises(StopIteration):
        next(stream)


def test_stop_strings_and_ids(model, problems):
    prompt = chat_prompt(model, problems[0])
    whole = model.generate(prompt)
    cut = model.generate(prompt, stop="=")
    assert "=" in whole.text and cut.text == whole.text.partition("=")[0] and cut.finish == "stop"
    assert model.generate(prompt, stop=["####", "="]).text == cut.text
    stop_id = whole.ids[6]
    by_id = model.generate(prompt, stop_ids=[stop_id])
    assert by_id.ids == whole.ids[:whole.ids.index(stop_id)] and by_id.finish == "stop"
    on = model.generate(prompt, ignore_eos=True, max_tokens=len(whole.ids) + 5)
    assert on.finish == "length" and on.ids[:len(whole.ids)] == whole.ids and len(on.ids) == len(whole.ids) + 5


def test_log_probabilities_are_those_of_the_logits(model, problems):
    prompt = chat_prompt(model, problems[1])
    answer = model.generate(prompt, max_tokens=6, logprobs=3, prompt_logprobs=2)
    logits = numpy.from_dlpack(model.logits(prompt + answer.ids)).astype(numpy.float64)
    top = logits.max(axis=1, keepdims=True)
    exact = logits - top - numpy.log(numpy.exp(logits - top).sum(axis=1, keepdims=True))
    assert [token.id for token in answer.prompt_tokens] == prompt[1:]
    for position, token in enumerate([*answer.prompt_tokens, *answer.tokens]):
        row = exact[position]
        assert len(token.top) == (2 if position < len(prompt) - 1 else 3)
        best = sorted(range(len(row)), key=lambda i: (-logits[position][i], i))[:len(token.top)]
        assert [pair.id for pair in token.top] == best
        for id, logprob in [(token.id, token.logprob), *token.top]:
            # Made in double and rounded to fp32 once: half a unit in the last place; 1e-12 is for both doubles.
            assert abs(logprob - row[id]) <= float(numpy.spacing(numpy.float32(abs(logprob)))) / 2 + 1e-12
    plain = model.generate(prompt, max_tokens=1)
    assert plain.tokens[0].logprob is None and plain.tokens[0].top == () and plain.prompt_tokens == []


def test_logits_are_those_of_the_command(model, abacus, command, tmp_path, problems):
    sequences = [chat_prompt(model, problems[2]), [11], list(range(3, 303))]
    (tmp_path / "ids.json").write_text(json.dumps({"sequences": sequences}))
    command("logits", abacus / "w4a8", "--ids", tmp_path / "ids.json", "--out", tmp_path / "out.safetensors", "-q")
    expected = read_safetensors(tmp_path / "out.safetensors")
    for i, ids in enumerate(sequences):
        found = numpy.from_dlpack(model.logits(numpy.array(ids, numpy.int32)))
        assert found.dtype == numpy.float32 and found.shape == (len(ids), model.vocab_size)
        assert found.tobytes() == expected[f"logits.{i}"].tobytes()


def test_logits_report_progress(model):
    seen = []
    model.logits(list(range(100)), progress=lambda *arguments: seen.append(arguments))
    for what, done, total in seen:
        assert isinstance(what, str) and 0 <= done <= total
    with pytest.raises(KeyError, match="mine"):
        slow = quadrille.Model.load(model.describe()["folder"], kernels="ref", threads=1)
        slow.logits(list(range(1500)), progress=raise_key_error)


def raise_key_error(*_):
    raise KeyError("mine")


def test_load_reports_progress_and_stops_when_it_raises(abacus):
    seen = []
    quadrille.Model.load(abacus / "w4a8", progress=lambda *arguments: seen.append(arguments)).close()
    for what, done, total in seen:
        assert isinstance(what, str) and 0 <= done <= total


def test_a_load_whose_last_report_raises_leaves_nothing(abacus):
    def refuse(what, done, total):
        if total and done == total:
            raise KeyError(what)

    def threads():
        return len(os.listdir("/proc/self/task"))

    before = threads()
    for _ in range(3):
        with pytest.raises(KeyError):
            quadrille.Model.load(abacus / "w4a8", progress=refuse)
    assert threads() == before


def test_cancel_while_a_request_is_submitted(model):
    generation = model.generate([[5, 6, 7], [8, 9]], max_tokens=40, stream=True)
    submit = generation._engine.submit

    class Engine:
        def __getattr__(self, name):
            return getattr(engine, name)

        def submit(self, **request):
            generation.cancel()
            return submit(**request)

    engine, generation._engine = generation._engine, Engine()
    assert [answer.finish for answer in generation.answers()] == ["cancelled", "cancelled"]


@pytest.mark.parametrize("options", [{"numerics": "vllm"}, {"rounding": "f32"}, {"tp": 2}, {"kernels": "generic"}])
def test_load_options(abacus, command, options, problems):
    flags = {"numerics": "--numerics", "rounding": "--round", "tp": "--tp", "kernels": "--kernels"}
    [(name, value)] = options.items()
    expected = json.loads(command("run", abacus / "w4a8", problems[3], "--json", "-q", flags[name], value))
    with quadrille.Model.load(abacus / "w4a8", **options) as model:
        about = model.describe()
        assert about[{"rounding": "round"}.get(name, name)] == value
        answer = model.chat([{"role": "user", "content": problems[3]}])
    assert (answer.text, answer.ids) == (expected["text"], expected["ids"])


def test_cancel_one_of_a_batch(model):
    prompts = [[5, 6], [7, 8], [9, 10]]
    stream = model.generate(prompts, max_tokens=300, ignore_eos=True, stream=True)
    next(stream)
    stream.cancel(1)
    answers = stream.answers()
    assert [answer.finish for answer in answers] == ["length", "cancelled", "length"]
    assert len(answers[1].tokens) < 300
    whole = model.generate(prompts, max_tokens=300, ignore_eos=True)
    assert answers[0].ids == whole[0].ids and answers[2].ids == whole[2].ids
    assert answers[1].ids == whole[1].ids[:len(answers[1].ids)]


def test_cancel_all_before_it_began(model):
    stream = model.generate([[5], [6]], max_tokens=1000, ignore_eos=True, stream=True)
    stream.cancel()
    answers = stream.answers()
    assert [answer.finish for answer in answers] == ["cancelled", "cancelled"]
    assert [answer.tokens for answer in answers] == [[], []]


def test_abandoned_requests_leave_the_engine(model):
    for _ in range(3):
        for _piece in model.generate([[5], [6]], max_tokens=1800, ignore_eos=True, stream=True):
            break
    assert model.generate([5, 6], max_tokens=1).finish == "length"
    metrics = model.metrics()
    assert metrics["running"] == 0 and metrics["waiting"] == 0


def test_prefix_cache(abacus, problems):
    with quadrille.Model.load(abacus / "w4a8", prefix_cache=True) as model:
        prompt = chat_prompt(model, problems[0]) + list(range(100))
        first = model.generate(prompt, max_tokens=8)
        again = model.generate(prompt, max_tokens=8)
    assert first.cached_prompt_tokens == 0 and again.cached_prompt_tokens >= 64
    assert again.ids == first.ids


def test_what_is_refused(model, abacus, tmp_path):
    load = quadrille.Model.load
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="numerics: expected one of 'exact', 'vllm', found 'fast'"):
        load(abacus / "w4a8", numerics="fast")
    with pytest.raises(TypeError, match="device: expected a str, found int"):
        load(abacus / "w4a8", device=0)
    with pytest.raises(TypeError, match="progress: expected a function or None, found int"):
        load(abacus / "w4a8", progress=1)
    with pytest.raises(NotImplementedError, match="legal|ranks"):
        load(abacus / "w4a8", tp=9)
    with pytest.raises(TypeError, match="prompts: expected a text, token ids or a list of those, found int"):
        model.generate(5)
    with pytest.raises(TypeError, match=r"prompts\[1\]\[0\]: expected an integer, found str"):
        model.generate([[5], ["x"]])
    with pytest.raises(ValueError, match=r"prompts\[1\]: .*2000"):
        model.generate([[5], [2000]])
    with pytest.raises(ValueError, match="temperature"):
        model.generate([5], temperature=-1.0)
    with pytest.raises(TypeError, match="temperature: expected a number, found str"):
        model.generate([5], temperature="hot")
    with pytest.raises(TypeError, match="max_tokens: expected an integer, found float"):
        model.generate([5], max_tokens=2.5)
    with pytest.raises(ValueError, match="seed: expected an integer of 0 to .*, found -1"):
        model.generate([5], seed=-1)
    with pytest.raises(ValueError, match="threads: expected an integer of 0 to 1024, found -2"):
        load(abacus / "w4a8", threads=-2)
    with pytest.raises(ValueError, match="empty"):
        model.generate([[]])
    with pytest.raises(MemoryError, match="2048"):
        model.generate([5], max_tokens=5000)
    with pytest.raises(MemoryError, match="2048"):
        model.logits([5] * 2100)
    with pytest.raises(ValueError, match="2000"):
        model.logits([2000])
    assert model.generate([]) == []


def test_a_closed_model_says_so(abacus):
    model = quadrille.Model.load(abacus / "w4a8")
    stream = model.generate([5, 6], max_tokens=1500, ignore_eos=True, stream=True)
    next(stream)
    model.close()
    model.close()
    with pytest.raises(ValueError, match="closed"):
        for _ in stream:
            pass
    with pytest.raises(ValueError, match="closed"):
        model.generate([5])
    assert model.tokenizer.decode(model.tokenizer.encode("still here")) == "still here"


def test_about_the_model(model):
    assert model.vocab_size == 2000 and model.max_length == 2048
    about = model.describe()
    assert about["config"]["num_experts"] == 16 and about["numerics"] == "exact" and about["stop_ids"] == [1997, 1999]
    assert math.isfinite(model.metrics()["decode_seconds"])
    assert "exact" in repr(model)

# SPDX-License-Identifier: Apache-2.0
"""Functions over model folders: the program's own reports, folders equal byte for byte, progress, refusals."""
import json

import pytest

import quadrille


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_times(report):
    return {key: value for key, value in report.items() if "seconds" not in key and key not in ("in", "out")}


@pytest.mark.parametrize("options", [{}, {"group_size": 32, "quotient": "bf16", "ignore": ["re:.*layers.3.*"]}])
def test_quantize_is_that_of_the_command(abacus, command, tmp_path, options):
    seen = []
    report = quadrille.quantize_folder(abacus / "bf16", tmp_path / "ours", **options,
                                       progress=lambda *arguments: seen.append(arguments))
    flags = [part for name, value in options.items()
             for part in (f"--{name.replace('_', '-')}", value[0] if isinstance(value, list) else value)]
    expected = json.loads(command("quantize", abacus / "bf16", tmp_path / "theirs", "-q", "--json", "-", *flags))
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "theirs")
    assert report["total"] == expected["total"] and report["tensors"] == expected["tensors"]
    assert set(report) == set(expected)
    assert all(isinstance(what, str) and 0 <= done <= total for what, done, total in seen)


def test_prepare_is_that_of_the_command(abacus, command, tmp_path):
    report = quadrille.prepare_folder(abacus / "w4a8", tmp_path / "ours", numerics="vllm")
    command("prepare", abacus / "w4a8", tmp_path / "theirs", "--numerics", "vllm", "-q")
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "theirs")
    assert report
    with quadrille.Model.load(tmp_path / "ours", numerics="vllm") as prepared:
        with quadrille.Model.load(abacus / "w4a8", numerics="vllm") as checkpoint:
            assert prepared.generate([5, 6, 7], max_tokens=20) == checkpoint.generate([5, 6, 7], max_tokens=20)
    with pytest.raises(ValueError, match="exact"):
        quadrille.Model.load(tmp_path / "ours", numerics="exact")


def test_work_that_is_interrupted_leaves_nothing(abacus, tmp_path):
    def stop(*_):
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        quadrille.quantize_folder(abacus / "bf16", tmp_path / "quantized", threads=1, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_describe_is_inspect(abacus, command):
    assert quadrille.describe_folder(abacus / "w4a8") == json.loads(command("inspect", abacus / "w4a8", "--json"))


def test_legal_tp(abacus):
    verdicts = quadrille.tp_verdicts(abacus / "w4a8", 9)
    assert [verdict["ranks"] for verdict in verdicts] == list(range(1, 10))
    legal = quadrille.legal_tp(abacus / "w4a8", 9)
    assert legal == [verdict["ranks"] for verdict in verdicts if verdict["legal"]]
    assert {1, 2, 4} <= set(legal) and 9 not in legal
    assert all(verdict["reasons"] for verdict in verdicts if not verdict["legal"])
    assert 4 in quadrille.legal_tp("qwen3-30b-a3b")


def test_plan_is_that_of_the_command(command):
    plan = quadrille.plan("deepseek-v3", gpus=16, gpu="h200", context=8192)
    flags = ["--gpus", 16, "--gpu", "h200", "--context", 8192]
    assert plan == json.loads(command("plan", "deepseek-v3", *flags, "--json"))
    assert plan["best"] is not None
    assert quadrille.plan("deepseek-v3", gpus=1, gpu="h100")["best"] is None


def test_what_is_refused(abacus, tmp_path):
    with pytest.raises(FileNotFoundError, match="qwen3-30b-a3b"):
        quadrille.plan("no-such-shape", gpus=1)
    with pytest.raises(ValueError, match="attention: expected one of 'divided', 'replicated', found 'none'"):
        quadrille.plan("deepseek-v3", gpus=16, attention="none")
    with pytest.raises(ValueError, match="tp"):
        quadrille.plan("deepseek-v3", gpus=16, tp=3)
    with pytest.raises(ValueError, match="max_ranks: expected an integer of 1 to 64, found 65"):
        quadrille.tp_verdicts("deepseek-v3", 65)
    with pytest.raises(FileNotFoundError):
        quadrille.describe_folder(tmp_path)
    with pytest.raises(ValueError, match="exist"):
        quadrille.quantize_folder(abacus / "bf16", tmp_path)
    with pytest.raises(NotImplementedError, match="quantised|quantized"):
        quadrille.quantize_folder(abacus / "w4a8", tmp_path / "out")
    with pytest.raises(ValueError, match="group"):
        quadrille.quantize_folder(abacus / "bf16", tmp_path / "out", group_size=48)
    assert list(tmp_path.iterdir()) == []

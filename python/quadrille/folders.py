# SPDX-License-Identifier: Apache-2.0
"""What can be said of, and done to, model folders without loading a model: describe, plan, quantise, prepare."""
from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from quadrille import _native
from quadrille.arguments import callback, integer, number, text
from quadrille.layers import _NUMERICS, _choose
from quadrille.preparation import _QUOTIENTS

#: (what, done, total): called about every 50 ms on the calling thread while long work goes on; what it raises ends the
#: work, which then leaves nothing behind. Ctrl-C ends it likewise, with or without a callback.
Progress = Callable[[str, int, int], object]

_ATTENTION = {"divided": False, "replicated": True}
_MANY = 2**31 - 1


def threads_of(threads: int | None) -> int:
    """The library's number for `threads`: 0 is one for each usable core."""
    return 0 if threads is None else integer("threads", threads, 0, 1024)


def describe_folder(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a model folder holds, from its headers alone: "config", "parameters", "disk_bytes", "modules" (how each is
    stored and run, and the rule that says so), "tensor_parallel", ... as `quadrille inspect --json` prints it.

    Raises FileNotFoundError, ValueError with file and tensor, NotImplementedError for a model that does not run.
    """
    return json.loads(_native.describe_folder(os.fspath(path)))


def tp_verdicts(model: str | os.PathLike[str], max_ranks: int = 8) -> list[dict[str, Any]]:
    """For 1 to max_ranks tensor-parallel ranks: {"ranks", "legal", "even" (every rank gets the same), "reasons"}.

    model: a folder, of which config.json alone is read, or the name of a published shape ("qwen3-30b-a3b").
    max_ranks: at most 64. docs/parallel.md has the rules.
    """
    return json.loads(_native.legal_tp(os.fspath(model), integer("max_ranks", max_ranks, 1, 64)))


def legal_tp(model: str | os.PathLike[str], max_ranks: int = 8) -> list[int]:
    """The numbers of tensor-parallel ranks, of 1 to max_ranks, that a model can be cut for; tp_verdicts() says why."""
    return [verdict["ranks"] for verdict in tp_verdicts(model, max_ranks) if verdict["legal"]]


def plan(model: str | os.PathLike[str], *, gpus: int = 0, tp: int = 0, ep: int = 0, gpu: str = "h100",
         gpus_per_host: int = 8, decode_tokens: int = 256, context: int = 4096, prefill_tokens: int = 4096,
         group_size: int | None = None, gpu_memory_gib: float = 0.0, attention: str = "divided") -> dict[str, Any]:
    """Memory (bytes), traffic (bytes) and predicted step time (microseconds) of every legal grid of ranks, as
    `quadrille plan --json` prints it; "best" is None where no grid fits. docs/scaling.md has every formula.

    model: a folder, of which config.json alone is read, or the name of a published shape.
    gpus: 0 is tp * ep. tp, ep: 0 is every size that is legal. gpu: "h100", "h200", "h20".
    decode_tokens: sequences that decode together over all GPUs; context: positions of each; prefill_tokens: of one
    prefill step over all GPUs. group_size: 32, 64, 128, 0 (one scale a channel); None is the folder's own, or 128.
    gpu_memory_gib: that a rank may use; 0 is the GPU's less 2. attention: over expert-parallel groups "divided" or
    "replicated". Raises FileNotFoundError (names the shapes), ValueError, NotImplementedError where no grid is legal.
    """
    return json.loads(_native.plan(
        os.fspath(model), gpu=text("gpu", gpu), gpus=integer("gpus", gpus, 0, 64), tp=integer("tp", tp, 0, 64),
        ep=integer("ep", ep, 0, 64), gpus_per_host=integer("gpus_per_host", gpus_per_host, 1, 64),
        decode_tokens=integer("decode_tokens", decode_tokens, 1, _MANY), context=integer("context", context, 1, _MANY),
        prefill_tokens=integer("prefill_tokens", prefill_tokens, 1, _MANY),
        group_size=-1 if group_size is None else integer("group_size", group_size, 0, 128),
        gpu_memory_gib=number("gpu_memory_gib", gpu_memory_gib),
        replicated_attention=_choose("attention", attention, _ATTENTION)))


def quantize_folder(src: str | os.PathLike[str], dst: str | os.PathLike[str], *, group_size: int = 128,
                    quotient: str = "f32", ignore: Sequence[str] = (), threads: int | None = None,
                    progress: Progress | None = None) -> dict[str, Any]:
    """Makes a compressed-tensors W4A8 folder `dst`, which must not exist, from a folder `src` in bf16, f16 or f32.

    group_size: weights that share a scale, 32, 64, 128, or 0 for one scale a channel. quotient: how weight / scale is
    rounded first, "f32" or "bf16" (docs/numerics.md). ignore: module paths, or 're:REGEX', that stay as they are beside
    head and gates. threads: None is one for each usable core. progress: bytes of `src`, at a tensor.
    Returns the error report of `quadrille quantize --json`: "total", "by_kind", "tensors", "bytes_in", "bytes_out", ...
    Raises FileNotFoundError, ValueError (dst exists, a group size that does not divide), NotImplementedError (already
    quantised), OSError; then, and where it is interrupted, there is no `dst`.
    """
    return json.loads(_native.quantize_folder(
        os.fspath(src), os.fspath(dst), group_size=integer("group_size", group_size, 0, 128),
        bf16_quotient=_choose("quotient", quotient, _QUOTIENTS) == 1,
        ignore=[text("ignore", pattern) for pattern in ignore], threads=threads_of(threads),
        progress=callback("progress", progress)))


def prepare_folder(src: str | os.PathLike[str], dst: str | os.PathLike[str], *, numerics: str = "exact",
                   run_weight_only_as_fp8: bool = False, round_scales: bool = False, threads: int | None = None,
                   progress: Progress | None = None) -> dict[str, Any]:
    """Makes a folder `dst`, which must not exist, that Model.load() opens as a mapping (docs/prepared.md).

    numerics: "exact" or "vllm"; the folder runs in this one alone. run_weight_only_as_fp8: a W4A16 checkpoint is taken
    as W4A8 instead of being refused. round_scales: scales that bf16 does not hold are rounded instead of being refused.
    threads: None is one for each usable core. progress: bytes of `src`, at a module.
    Returns the report of `quadrille prepare --json`. Raises as Model.load() does for `src`, ValueError where dst
    exists, OSError; then, and where it is interrupted, there is no `dst`.
    """
    return json.loads(_native.prepare_folder(
        os.fspath(src), os.fspath(dst), numerics=_choose("numerics", numerics, _NUMERICS),
        run_weight_only_as_fp8=bool(run_weight_only_as_fp8), round_scales=bool(round_scales),
        threads=threads_of(threads), progress=callback("progress", progress)))

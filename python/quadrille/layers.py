# SPDX-License-Identifier: Apache-2.0
"""W4A8 layers over a checkpoint's tensors: the MoE layer and the linear layer, on the CPU and on a Hopper GPU.

Tensors are of any library that speaks DLPack (torch, numpy, jax, cupy); they are read where they lie. Where a library
has no bfloat16 (numpy), uint16 arrays hold its bits, and arrays of ml_dtypes.bfloat16 are taken as they are.
"""
from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from quadrille import _native
from quadrille.arguments import integer, number
from quadrille.tensors import TensorLike, TensorOrPair

_FORMATS = {"uint4b8": 0, "int4": 1, "int8": 2}
_NUMERICS = {"exact": 0, "vllm": 1}
_ROUNDINGS = {"bf16": 0, "f32": 1}
_SCORINGS = {"softmax": 0, "softmax_after_topk": 1, "sigmoid": 2}
_ACTIVATIONS = {"silu": 0, "clamped_swiglu": 1, "gelu_tanh": 2, "relu2": 3}
_NOT_GATED = "relu2"
_CUDA = 2  # as DLPack numbers devices
_ROUTER = {
    "top_k": None,
    "scoring": "softmax",
    "renormalise": False,
    "renorm_epsilon": 0.0,
    "routed_scaling": 1.0,
    "num_groups": 1,
    "groups_kept": 1,
    "weight_on_input": False,
    "correction_bias": None,
}
_places: dict[tuple[int, str], _native.Place] = {}
os.register_at_fork(after_in_child=_places.clear)  # a child has none of the threads


def _choose(name, value, legal):
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, one of {', '.join(map(repr, legal))}, found {value!r}")
    if value not in legal:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, legal))}, found {value!r}")
    return legal[value]


def _group_size(value):
    if value is None or value == -1:
        return 0
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"group_size: expected 32, 64 or 128, or None (one scale a channel), found {value!r}")
    if value not in (0, 32, 64, 128):
        raise ValueError(f"group_size: expected 32, 64 or 128, or None (one scale a channel), found {value}")
    return value


def _parts(tensors):
    return list(tensors) if isinstance(tensors, (tuple, list)) else [tensors]


def place(threads: int | None = None, kernels: str | None = None) -> _native.Place:
    """Threads and kernels of the CPU, shared by all that ask for the same."""
    key = (0 if threads is None else integer("threads", threads, 0, 1024), kernels or "")
    if key not in _places:
        _places[key] = _native.Place(*key)
    return _places[key]


def _place_of(tensors: TensorOrPair, threads: int | None, kernels: str | None) -> _native.Place | None:
    """Where a layer over these weights computes: None on a GPU."""
    device = getattr(_parts(tensors)[0], "__dlpack_device__", None)
    return None if device is not None and device()[0] == _CUDA else place(threads, kernels)


class _Matrix:
    """One matrix of every expert as the caller gave it; prepared by prepare()."""

    def __init__(self, name, codes, scales, bias, options, *, num_parts, stacked):
        tensors = {"codes": _parts(codes), "scales": _parts(scales)}
        if bias is not None:
            tensors["biases"] = _parts(bias)
        if len(tensors["codes"]) not in (1, num_parts):
            raise ValueError(f"{name}: expected one tensor{' or a pair (gate, up)' if num_parts == 2 else ''}, "
                             f"found {len(tensors['codes'])}")
        self._arguments = (name, tensors, options["source"], options["numerics"], options["group_size"], num_parts,
                           stacked)

    def check_in_place(self):
        _native.check_in_place(*self._arguments)

    def prepare(self, where, stream, in_place):
        return _native.prepare_weights(*self._arguments, where, stream, in_place)


def _prepare_all(matrices, where, stream, in_place):
    """All or, where one is bad, none: what is overwritten in place is checked first."""
    if in_place:
        for matrix in matrices.values():
            matrix.check_in_place()
    return {name: matrix.prepare(where, stream, in_place) for name, matrix in matrices.items()}


def _router_options(router):
    if router is None or "top_k" not in router:
        raise TypeError("router: expected a dict with at least 'top_k', found "
                        + ("None" if router is None else f"keys {sorted(router)}"))
    unknown = sorted(set(router) - set(_ROUTER))
    if unknown:
        raise TypeError(f"router: expected keys of {', '.join(_ROUTER)}, found {', '.join(unknown)}")
    options = {**_ROUTER, **router}
    options["scoring"] = _choose("router['scoring']", options["scoring"], _SCORINGS)
    for key in ("top_k", "num_groups", "groups_kept"):
        options[key] = integer(f"router['{key}']", options[key], 1, 2**31 - 1)
    for key in ("renorm_epsilon", "routed_scaling"):
        options[key] = number(f"router['{key}']", options[key])
    for key in ("renormalise", "weight_on_input"):
        options[key] = bool(options[key])
    return options


class MoELayer:
    """A Mixture-of-Experts layer with 4-bit weights and FP8 activations; make one with from_tensors().

    What it computes is defined to the bit in docs/numerics.md section 4; a GPU and the CPU table "hopper" give the same
    bits. Calls release the interpreter lock; several threads may call one layer.
    """

    def __init__(self, native, weights):
        self._native = native
        self._weights = weights

    @classmethod
    def from_tensors(cls, gate_up: TensorOrPair, gate_up_scales: TensorOrPair, down: TensorLike,
                     down_scales: TensorLike, *, group_size: int | None, router: Mapping[str, Any], format: str = "uint4b8",
                     numerics: str = "exact", activation: str = "silu", alpha: float = 1.702, limit: float = 7.0,
                     up_offset: float = 1.0, gate_up_bias: TensorOrPair | None = None,
                     down_bias: TensorLike | None = None, shared: Mapping[str, Any] | None = None, rounding: str = "bf16",
                     in_place: bool = False, threads: int | None = None, kernels: str | None = None,
                     stream: Any = None) -> MoELayer:
        """Prepares the experts of a layer where their tensors are, on the CPU or on a GPU.

        E experts, H hidden, I width, g group size (None: one scale a channel, "groups" is 1).
        gate_up         [E, 2 * I, H / 8] int32, gate rows first, or a pair (gate, up) of [E, I, H / 8]; with
                        format "int8" [E, 2 * I, H] int8. [E, I, H / 8] where the activation is not gated (relu2).
        gate_up_scales  [E, 2 * I, ceil(H / g)] bfloat16, or a pair
        down            [E, H, I / 8] int32; down_scales [E, H, ceil(I / g)] bfloat16
        gate_up_bias    [E, 2 * I] float32, or a pair; down_bias [E, H] float32
        format          "uint4b8": eight codes a word, q + 8, lowest nibble first; "int4": two's complement; "int8"
        numerics        "exact" or "vllm" (docs/numerics.md section 3)
        router          top_k, and where they differ from the defaults: scoring ("softmax", "softmax_after_topk",
                        "sigmoid"), renormalise, renorm_epsilon, routed_scaling, num_groups, groups_kept,
                        weight_on_input, correction_bias ([E] float32)
        activation      "silu", "clamped_swiglu" (alpha, limit, up_offset), "gelu_tanh", "relu2"
        shared          one expert beside the routed ones: a dict of gate_up [2 * S, H / 8], gate_up_scales, down
                        [H, S / 8], down_scales, and gate ([H] bfloat16: sigmoid gate) where there is one
        rounding        "bf16", or on the CPU "f32": nothing is rounded between the products
        in_place        CPU: the prepared codes overwrite those of gate_up and down, whose tensors are kept
        threads, kernels  of the CPU: how many (None: one a core), and a table by name (None: the best here)
        stream          GPU: where the preparation is enqueued (a handle, or an object with cuda_stream or ptr; None:
                        the default stream). Nothing waits; the sources are kept until they have been read.

        Rows lie one behind the other without gaps; experts may have any distance. Raises TypeError and ValueError with
        argument, rule, expected and found before anything is read; ValueError for a scale that is not finite (of a GPU
        at synchronize()); NotImplementedError for a shape that does not run, and for a GPU that is no Hopper.
        """
        options = {"source": _choose("format", format, _FORMATS), "numerics": _choose("numerics", numerics, _NUMERICS),
                   "group_size": _group_size(group_size)}
        call = {**_router_options(router), "activation": _choose("activation", activation, _ACTIVATIONS),
                "alpha": number("alpha", alpha), "limit": number("limit", limit),
                "up_offset": number("up_offset", up_offset),
                "rounding": _choose("rounding", rounding, _ROUNDINGS)}
        where = _place_of(gate_up, threads, kernels)
        parts = 1 if activation == _NOT_GATED else 2
        matrices = {
            "gate_up": _Matrix("gate_up", gate_up, gate_up_scales, gate_up_bias, options, num_parts=parts, stacked=True),
            "down": _Matrix("down", down, down_scales, down_bias, options, num_parts=1, stacked=True),
        }
        if shared is not None:
            matrices.update(_shared_matrices(shared, options, parts))
        weights = _prepare_all(matrices, where, stream, in_place)
        prepared = list(weights.values())
        if shared is not None and shared.get("gate") is not None:
            weights["shared_gate"] = shared["gate"]
        if call["correction_bias"] is not None:
            weights["correction_bias"] = call["correction_bias"]
        call["num_experts"] = weights["gate_up"].num_experts
        return cls(_native.Layer(weights, call, where, stream), prepared)

    def __call__(self, x: TensorLike, router_logits: TensorLike | None = None, topk_ids: TensorLike | None = None,
                 topk_weights: TensorLike | None = None, *, out: Any = None, stream: Any = None,
                 workspace: TensorLike | None = None) -> Any:
        """out [tokens, H] = the layer's output for x [tokens, H].

        x              bfloat16; on the CPU also float32 (rounded to bfloat16 first where the layer rounds)
        router_logits  [tokens, E] float32; or both of
        topk_ids       [tokens, top_k] int32, -1: nowhere
        topk_weights   [tokens, top_k] float32
        out            like x, and may be x; None: a new Tensor. Needed in a capture.
        stream         GPU: where the work is enqueued, in any form that from_tensors() takes. Nothing waits. None is
                       the default stream, as in DLPack; the tensors then stay until it has come past them.
        workspace      GPU: uint8, workspace_bytes(tokens) bytes at a multiple of 256; None: from the pool of the device

        Raises TypeError and ValueError before anything is read; ValueError for an id outside of the experts (CPU; on a
        GPU it counts as -1).
        """
        return self._native.run(x, router_logits, topk_ids, topk_weights, out, stream, workspace)

    @property
    def device(self) -> str:
        """"cpu" or "cuda:N"."""
        return self._native.device

    @property
    def hidden_size(self) -> int:
        """H: columns of x and of the output."""
        return self._native.hidden_size

    @property
    def num_experts(self) -> int:
        """E."""
        return self._native.num_experts

    @property
    def top_k(self) -> int:
        """Experts a token goes to."""
        return self._native.top_k

    @property
    def nbytes(self) -> int:
        """Bytes that the prepared weights take."""
        return sum(w.nbytes for w in self._weights)

    def workspace_bytes(self, num_tokens: int) -> int:
        """Bytes of scratch memory on the GPU that a call with up to num_tokens tokens takes; 0 on the CPU."""
        return self._native.workspace_bytes(num_tokens)

    def synchronize(self) -> None:
        """Waits until the preparation is done; ValueError where a GPU found a scale or a code that is not legal."""
        for weights in self._weights:
            weights.synchronize()


def _shared_matrices(shared, options, parts):
    legal = ("gate_up", "gate_up_scales", "down", "down_scales", "gate")
    if set(shared) - set(legal) or set(legal[:4]) - set(shared):
        raise TypeError(f"shared: expected keys of {', '.join(legal)}, found {', '.join(sorted(shared))}")
    return {
        "shared_gate_up": _Matrix("shared['gate_up']", shared["gate_up"], shared["gate_up_scales"], None, options,
                                  num_parts=parts, stacked=False),
        "shared_down": _Matrix("shared['down']", shared["down"], shared["down_scales"], None, options, num_parts=1,
                               stacked=False),
    }


class Linear:
    """out = x W^T (+ bias) with 4-bit weights and FP8 activations; make one with from_tensors()."""

    def __init__(self, native, weights):
        self._native = native
        self._weights = weights

    @classmethod
    def from_tensors(cls, weight: TensorLike, scales: TensorLike, *, group_size: int | None, format: str = "uint4b8",
                     numerics: str = "exact", bias: TensorLike | None = None, rounding: str = "bf16",
                     in_place: bool = False, threads: int | None = None, kernels: str | None = None,
                     stream: Any = None) -> Linear:
        """weight [n, k / 8] int32 (format "int8": [n, k] int8), scales [n, ceil(k / group_size)] bfloat16, bias [n]
        float32 or None. The rest is as in MoELayer.from_tensors()."""
        options = {"source": _choose("format", format, _FORMATS), "numerics": _choose("numerics", numerics, _NUMERICS),
                   "group_size": _group_size(group_size)}
        rounding_value = _choose("rounding", rounding, _ROUNDINGS)
        where = _place_of(weight, threads, kernels)
        matrix = _Matrix("weight", weight, scales, bias, options, num_parts=1, stacked=False)
        weights = _prepare_all({"weight": matrix}, where, stream, in_place)["weight"]
        return cls(_native.Linear(weights, rounding_value, where), weights)

    def __call__(self, x: TensorLike, *, out: Any = None, stream: Any = None, workspace: TensorLike | None = None) -> Any:
        """out [rows, n] for x [rows, k]; arguments as of MoELayer.__call__()."""
        return self._native.run(x, out, stream, workspace)

    @property
    def device(self) -> str:
        """"cpu" or "cuda:N"."""
        return self._native.device

    @property
    def in_features(self) -> int:
        """k."""
        return self._native.in_features

    @property
    def out_features(self) -> int:
        """n."""
        return self._native.out_features

    @property
    def nbytes(self) -> int:
        """Bytes that the prepared weights take."""
        return self._weights.nbytes

    def workspace_bytes(self, num_rows: int) -> int:
        """Bytes of scratch memory on the GPU that a call with up to num_rows rows takes; 0 on the CPU."""
        return self._native.workspace_bytes(num_rows)

    def synchronize(self) -> None:
        """Waits until the preparation is done; ValueError where a GPU found a scale or a code that is not legal."""
        self._weights.synchronize()

# SPDX-License-Identifier: Apache-2.0
"""The ways of a weight in host memory: to 4 bits, to the bytes that a backend reads, and back."""
from __future__ import annotations

from typing import NamedTuple

from quadrille import _native
from quadrille.layers import _FORMATS, _NUMERICS, _choose, _group_size, _parts, place
from quadrille.tensors import Tensor, TensorLike, TensorOrPair

_LAYOUTS = {"cpu": 0, "hopper": 1}
_QUOTIENTS = {"f32": 0, "bf16": 1}


class Unprepared(NamedTuple):
    """What unprepare() gives back."""

    codes: Tensor
    """[E, n, k / 8] int32, uint4b8: eight codes a word, q + 8, lowest nibble first."""
    scales: Tensor | None
    """[E, n, ceil(k / group_size)] bfloat16; None for numerics "vllm", whose scales were rounded on the way."""
    layout: str
    numerics: str
    group_size: int | None
    gate_up: bool


def quantize(weight: TensorLike, group_size: int | None, symmetric: bool = True, *, quotient: str = "f32",
             threads: int | None = None) -> tuple[Tensor, Tensor]:
    """4-bit codes and scales of a weight: (codes, scales).

    weight      [.., k] bfloat16, float16 or float32 of rank 1 to 4, contiguous or not, on the CPU
    group_size  32, 64 or 128 that divides k; None: one scale a row
    symmetric   True: the kernels have no zero points
    quotient    "f32": w / scale is rounded once, to the integer; "bf16": to bfloat16 first, as the
                compressed-tensors library does on a CPU

    codes   [.., ceil(k / 8)] int32, uint4b8: eight codes a word, q + 8, lowest nibble first
    scales  [.., groups] bfloat16: absmax / 7.5 of each group; of a group of zeros 2^-7
    q = rint(clamp(w / scale, -8, 7)), ties to even: the arithmetic of compressed-tensors, to the bit.
    Raises ValueError for a weight that is not finite, and NotImplementedError for symmetric=False.
    """
    if not symmetric:
        raise NotImplementedError("symmetric: expected True, found False: the kernels have no zero points")
    return _native.quantize(weight, _group_size(group_size), _choose("quotient", quotient, _QUOTIENTS), place(threads))


def prepare(codes: TensorOrPair, scales: TensorOrPair, *, group_size: int | None,
            format: str = "uint4b8", numerics: str = "exact", layout: str = "cpu", gate_up: bool = False,
            threads: int | None = None) -> Tensor:
    """A checkpoint's weights as the bytes that a backend's kernels read, behind a head that says what they are.

    codes    [n, k / 8] int32 or [E, n, k / 8]; format "int8": [.., k] int8; a pair (gate, up) of them, or with gate_up
             one tensor with gate rows first. On the CPU.
    scales   the same with ceil(k / group_size) bfloat16 columns; group_size None: 1
    layout   "cpu" or "hopper": the order of the CPU tables, or that of the Hopper kernels (gate and up interleaved)
    Returns a uint8 Tensor [bytes]. Raises ValueError for a scale that is not finite or a code outside of -8..7.
    """
    tensors = {"codes": _parts(codes), "scales": _parts(scales)}
    first = tensors["codes"][0]
    num_parts = 2 if gate_up or len(tensors["codes"]) == 2 else 1
    stacked = len(getattr(first, "shape", ())) == 3
    return _native.prepare("codes", tensors, _choose("format", format, _FORMATS),
                           _choose("numerics", numerics, _NUMERICS), _group_size(group_size), num_parts, stacked,
                           place(threads), _choose("layout", layout, _LAYOUTS))


def unprepare(prepared: TensorLike) -> Unprepared:
    """What prepare() was given, from its bytes (uint8 [bytes], contiguous, on the CPU): an Unprepared.

    Codes come back bit for bit, scales for numerics "exact". Raises ValueError for bytes that are damaged or of another
    release.
    """
    found = _native.unprepare(prepared)
    return Unprepared(found["codes"], found["scales"], _name_of(_LAYOUTS, found["layout"]),
                      _name_of(_NUMERICS, found["numerics"]), found["group_size"] or None, found["num_parts"] == 2)


def _name_of(names, value):
    return next(name for name, number in names.items() if number == value)

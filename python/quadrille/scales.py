# SPDX-License-Identifier: Apache-2.0
"""Group scales as the `vllm` numerics hold them (docs/numerics.md section 3), for tensors of rank 1 to 4.

Tensors are on the CPU, contiguous or not; leading dimensions are rows. e4m3 is taken and given as bytes (uint8).
"""
from __future__ import annotations

from typing import NamedTuple

from quadrille import _native
from quadrille.tensors import Tensor, TensorLike


class Split(NamedTuple):
    """The scales s [.., groups] of each row, split."""

    channel_scale: Tensor
    """[..] float32: max(max_g |s| / 448, 1 / (448 * 512))."""
    channel_scale8: Tensor
    """[..] float32: 8 times that, which the kernels multiply with."""
    group_scale: Tensor
    """[.., groups] e4m3: E4(s / channel_scale)."""
    group_scale8: Tensor
    """[.., groups] e4m3: E4(group_scale / 8), from which the kernels' tables are made."""


def split(scales: TensorLike) -> Split:
    """A Split of bfloat16 scales [.., groups]. Raises ValueError for a scale that is NaN or infinite."""
    return Split(*_native.split_scales(scales))


def to_vllm(scales: TensorLike) -> tuple[Tensor, Tensor]:
    """(group_scale8 [.., groups] e4m3, channel_scale8 [..] float32): what that engine holds after loading."""
    parts = split(scales)
    return parts.group_scale8, parts.channel_scale8


def tables(group_scale8: TensorLike) -> Tensor:
    """[.., 8] e4m3 of s * -8 ... s * -1 for each e4m3 scale of [..]."""
    return _native.scale_tables(group_scale8)


def packed_tables(group_scale8: TensorLike) -> Tensor:
    """[.., groups, n, 8] e4m3 tables of scales [.., n, groups]: the order of the grouped kernels."""
    return _native.packed_scale_tables(group_scale8)

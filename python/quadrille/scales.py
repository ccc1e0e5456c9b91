# SPDX-License-Identifier: Apache-2.0
"""Group scales as the `vllm` numerics hold them (docs/numerics.md section 3), for tensors of rank 1 to 4.

Tensors are on the CPU, contiguous or not; leading dimensions are rows. e4m3 is taken and given as bytes (uint8).
"""
from typing import NamedTuple

from quadrille import _native


class Split(NamedTuple):
    """The scales s [.., groups] of each row, split."""

    channel_scale: _native.Tensor
    """[..] float32: max(max_g |s| / 448, 1 / (448 * 512))."""
    channel_scale8: _native.Tensor
    """[..] float32: 8 times that, which the kernels multiply with."""
    group_scale: _native.Tensor
    """[.., groups] e4m3: E4(s / channel_scale)."""
    group_scale8: _native.Tensor
    """[.., groups] e4m3: E4(group_scale / 8), from which the kernels' tables are made."""


def split(scales):
    """A Split of bfloat16 scales [.., groups]. Raises ValueError for a scale that is NaN or infinite."""
    return Split(*_native.split_scales(scales))


def to_vllm(scales):
    """(group_scale8 [.., groups] e4m3, channel_scale8 [..] float32): what that engine holds after loading."""
    parts = split(scales)
    return parts.group_scale8, parts.channel_scale8


def tables(group_scale8):
    """[.., 8] e4m3 of s * -8 ... s * -1 for each e4m3 scale of [..]."""
    return _native.scale_tables(group_scale8)


def packed_tables(group_scale8):
    """[.., groups, n, 8] e4m3 tables of scales [.., n, groups]: the order of the grouped kernels."""
    return _native.packed_scale_tables(group_scale8)

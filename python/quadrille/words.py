# SPDX-License-Identifier: Apache-2.0
"""Words of eight 4-bit codes in other spellings, as the `vllm` numerics hold them on the way (docs/numerics.md).

Tensors are int32 of rank 1 to 4 on the CPU, contiguous or not; results are new and contiguous.
"""
from __future__ import annotations

from quadrille import _native
from quadrille.tensors import Tensor, TensorLike


def flip_sign(words: TensorLike) -> Tensor:
    """uint4b8 to two's complement codes, or back: [.., k / 8] -> the same shape."""
    return _native.convert_words(words, 0)


def unified(words: TensorLike) -> Tensor:
    """Two's complement codes to unified ones (1..7 become 8 - v), or back: [.., k / 8] -> the same shape."""
    return _native.convert_words(words, 1)


def reorder(words: TensorLike) -> Tensor:
    """Two's complement words [.., n, k / 8] in the order of the other engine's kernels; n a multiple of 16, k of 32."""
    return _native.reorder_words(words)


def to_e4m3(words: TensorLike, group_scale8: TensorLike, group_size: int | None) -> Tensor:
    """Weight bytes [.., k] e4m3 = E4(s8 * q), 0x00 where q is 0, of two's complement words [.., k / 8] and scales
    [.., ceil(k / group_size)] e4m3. group_size None: one scale a row."""
    return _native.words_to_e4m3(words, group_scale8, 0 if group_size in (None, -1) else group_size)

# SPDX-License-Identifier: Apache-2.0
"""What counts as a tensor and as a stream in every call."""
from __future__ import annotations

from typing import Any, Protocol, Union, runtime_checkable

from quadrille._native import Tensor

__all__ = ["Stream", "Tensor", "TensorLike", "TensorOrPair"]


@runtime_checkable
class TensorLike(Protocol):
    """A tensor of any library that speaks DLPack: torch, numpy, jax, cupy, our own."""

    def __dlpack__(self, **options: Any) -> Any:
        """A capsule with the tensor."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """Type and number of the device."""


#: One tensor, or a pair (gate, up).
TensorOrPair = Union[TensorLike, "tuple[TensorLike, TensorLike]"]

#: A stream of a GPU: None (the default stream, as in DLPack), its handle, or an object with cuda_stream (torch), ptr
#: (cupy) or handle.
Stream = Any

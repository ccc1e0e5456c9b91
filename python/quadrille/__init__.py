# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-Experts models with 4-bit weights and FP8 activations (W4A8), on Hopper GPUs and on CPUs.

Tensors come in and go out by DLPack: torch, numpy, jax, cupy. No version of any of them is compiled in.
"""
from quadrille._native import Tensor, __version__
from quadrille.layers import Linear, MoELayer

__all__ = ["Linear", "MoELayer", "Tensor", "__version__"]

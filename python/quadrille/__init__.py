# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-Experts models with 4-bit weights and FP8 activations (W4A8), on Hopper GPUs and on CPUs.

Tensors come in and go out by DLPack: torch, numpy, jax, cupy. No version of any of them is compiled in.
"""
from quadrille._native import Tensor, __version__
from quadrille import scales, words
from quadrille.layers import Linear, MoELayer
from quadrille.preparation import Unprepared, prepare, quantize, unprepare

__all__ = ["Linear", "MoELayer", "Tensor", "Unprepared", "__version__", "prepare", "quantize", "scales", "unprepare",
           "words"]

# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-Experts models with 4-bit weights and FP8 activations (W4A8), on Hopper GPUs and on CPUs.

Tensors come in and go out by DLPack: torch, numpy, jax, cupy. No version of any of them is compiled in.
"""
from quadrille._native import Tensor, version
from quadrille import scales, words
from quadrille.folders import describe_folder, legal_tp, plan, prepare_folder, quantize_folder, tp_verdicts
from quadrille.generation import Answer, Generation, Piece, Token, TokenLogprob
from quadrille.layers import Linear, MoELayer
from quadrille.model import Model
from quadrille.preparation import Unprepared, prepare, quantize, unprepare
from quadrille.tokenizer import Tokenizer

__version__ = version()
__all__ = ["Answer", "Generation", "Linear", "Model", "MoELayer", "Piece", "Tensor", "Token", "TokenLogprob",
           "Tokenizer", "Unprepared", "__version__", "describe_folder", "legal_tp", "plan", "prepare", "prepare_folder",
           "quantize", "quantize_folder", "scales", "tp_verdicts", "unprepare", "words"]

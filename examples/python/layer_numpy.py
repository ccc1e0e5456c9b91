#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One W4A8 MoE layer beside the same layer written in numpy: what it computes, step by step, and how near the two are.

Activations are rounded to e4m3 with one scale a token before each of the two products, weights are 4-bit codes with a
bf16 scale for each group (docs/numerics.md, sections 2 and 3). Both sides round at the same places, so what is left is
the order of fp32 additions.
"""
import numpy

import quadrille

EXPERTS, TOP_K, HIDDEN, WIDTH, GROUP, TOKENS = 8, 2, 512, 256, 128, 7


def pack(codes):
    """[..., k] codes of -8..7 as [..., k / 8] int32 words: nibble = code + 8, the lowest nibble the lowest k."""
    nibbles = (codes + 8).astype(numpy.uint32).reshape(*codes.shape[:-1], -1, 8)
    return (nibbles << (4 * numpy.arange(8, dtype=numpy.uint32))).sum(axis=-1, dtype=numpy.uint32).view(numpy.int32)


def bf16_bits(values):
    """The upper halves of fp32 numbers: bf16, rounded toward zero."""
    return (values.astype(numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16)


def widen(bits):
    return (bits.astype(numpy.uint32) << 16).view(numpy.float32)


def round_e4m3(x):
    """Rows of x as e4m3 sees them with one scale a row: max(absmax / 448, 1 / (448 * 512))."""
    scale = numpy.maximum(numpy.abs(x).max(axis=-1, keepdims=True) / numpy.float32(448), numpy.float32(1 / (448 * 512)))
    value = x / scale
    _, exponent = numpy.frexp(value)
    step = numpy.ldexp(numpy.float32(1), numpy.maximum(exponent - 1, -6) - 3)
    return numpy.clip(numpy.rint(value / step) * step, -448, 448) * scale


def layer_in_numpy(x, logits, gate_up, down):
    """In double but for the rounding of activations; gate_up [E, 2 * WIDTH, HIDDEN], down [E, HIDDEN, WIDTH]."""
    probabilities = numpy.exp(logits - logits.max(axis=1, keepdims=True).astype(numpy.float64))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    out = numpy.zeros(x.shape)
    rounded = round_e4m3(x).astype(numpy.float64)
    for token in range(len(x)):
        chosen = numpy.argsort(-logits[token], kind="stable")[:TOP_K]
        weights = probabilities[token, chosen] / probabilities[token, chosen].sum()
        for expert, weight in zip(chosen, weights):
            gate, up = numpy.split(gate_up[expert] @ rounded[token], 2)
            hidden = (gate / (1 + numpy.exp(-gate)) * up).astype(numpy.float32)
            out[token] += weight * (down[expert] @ round_e4m3(hidden).astype(numpy.float64))
    return out


def main():
    random = numpy.random.default_rng(7)
    codes = {"gate_up": random.integers(-8, 8, (EXPERTS, 2 * WIDTH, HIDDEN)),
             "down": random.integers(-8, 8, (EXPERTS, HIDDEN, WIDTH))}
    scales = {name: bf16_bits(random.uniform(0.005, 0.02, (*c.shape[:2], c.shape[2] // GROUP)))
              for name, c in codes.items()}
    x = random.standard_normal((TOKENS, HIDDEN), dtype=numpy.float32)
    logits = random.standard_normal((TOKENS, EXPERTS), dtype=numpy.float32)

    layer = quadrille.MoELayer.from_tensors(
        pack(codes["gate_up"]), scales["gate_up"], pack(codes["down"]), scales["down"], format="uint4b8",
        group_size=GROUP, router={"top_k": TOP_K, "scoring": "softmax", "renormalise": True}, rounding="f32")
    ours = numpy.from_dlpack(layer(x, logits))

    weights = {name: c * numpy.repeat(widen(scales[name]), GROUP, axis=-1).astype(numpy.float64)
               for name, c in codes.items()}
    theirs = layer_in_numpy(x, logits, weights["gate_up"], weights["down"])
    difference = numpy.abs(ours - theirs).max(axis=1) / numpy.abs(theirs).max(axis=1)
    for token, share in enumerate(difference):
        print(f"token {token}: largest output {numpy.abs(theirs[token]).max():7.3f}, difference {share:.1e} of it")
    # A sum of n products in fp32 is off by at most n * 2^-24 of the sum of their magnitudes, which here is below 20
    # times the largest sum. (A hidden value that lies that near to a rounding boundary would step; none here does.)
    bound = 20 * (HIDDEN + WIDTH) * 2.0**-24
    if difference.max() > bound:
        raise SystemExit(f"the two differ by {difference.max():.1e}, more than {bound:.1e}")
    print(f"within {bound:.1e}")


if __name__ == "__main__":
    main()

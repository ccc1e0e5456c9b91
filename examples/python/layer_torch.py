# SPDX-License-Identifier: Apache-2.0
"""One W4A8 MoE layer on the CPU beside the same layer in plain PyTorch.

    python examples/python/layer_torch.py

The plain layer says what the numerics `exact` are (docs/numerics.md): rows of activations in e4m3 with a scale of their
own, 4-bit weights with a bf16 scale a group, sums in higher precision. Both must agree within what the rounding of fp32
sums can do, which now and then is to move an activation between the two matrices to the next e4m3 value.
"""
import torch

import quadrille
import quadrille.torch

EXPERTS, TOP_K, HIDDEN, WIDTH, GROUP, TOKENS = 8, 2, 256, 128, 64, 64
FLOOR = 1.0 / (448 * 512)  # the smallest scale of a row


def unpack(words: torch.Tensor) -> torch.Tensor:
    """int32 [.., k / 8], eight codes + 8 in a word, lowest first -> codes [.., k] float64."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return ((words.unsqueeze(-1) >> shifts & 15) - 8).flatten(-2).double()


def to_e4m3(x: torch.Tensor) -> torch.Tensor:
    return x.float().clamp(-448, 448).to(torch.float8_e4m3fn).double()


def row_scale(x: torch.Tensor) -> torch.Tensor:
    return (x.abs().amax(-1, keepdim=True).float() / 448).clamp_min(FLOOR).double()


class PlainExpert:
    """gate_up [2 * width, hidden] and down [hidden, width] in float64."""

    def __init__(self, gate_up: torch.Tensor, gate_up_scales: torch.Tensor, down: torch.Tensor,
                 down_scales: torch.Tensor) -> None:
        self.gate_up = unpack(gate_up) * gate_up_scales.double().repeat_interleave(GROUP, -1)
        self.down = unpack(down) * down_scales.double().repeat_interleave(GROUP, -1)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [rows, hidden] -> the output, and how far fp32 sums may move it."""
        scale = row_scale(x)
        codes = to_e4m3(x / scale)
        gate, up = (scale * (codes @ self.gate_up.T)).chunk(2, -1)
        # A sum of n fp32 products in any order is within n * 2^-24 of the sum of their absolute values; n + 8 has room
        # for the scales and the activation, whose slope is below 1.1.
        gate_error, up_error = ((HIDDEN + 8) * 2.0**-24 * scale * (codes.abs() @ self.gate_up.abs().T)).chunk(2, -1)
        act = torch.nn.functional.silu(gate) * up
        act_error = 1.1 * gate_error * up.abs() + torch.nn.functional.silu(gate).abs() * up_error + 2.0**-20 * act.abs()
        scale = row_scale(act)
        # The scale follows the largest value, a quotient its value and the scale.
        slack = act_error / scale + (act / scale).abs() * (act_error.amax(-1, keepdim=True) / (448 * scale) + 2.0**-22)
        codes = to_e4m3(act / scale)
        moved = (to_e4m3(act / scale + slack) - to_e4m3(act / scale - slack)).abs()
        down = self.down.abs()
        error = scale * (moved @ down.T + codes.abs() @ down.T * (
            (WIDTH + 8) * 2.0**-24 + act_error.amax(-1, keepdim=True) / (448 * scale)))
        return scale * (codes @ self.down.T), error


def plain_layer(experts: list[PlainExpert], x: torch.Tensor, ids: torch.Tensor,
                weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token through its experts, weighted: the output and its error bound."""
    out, error = torch.zeros(2, *x.shape, dtype=torch.float64)
    for number, expert in enumerate(experts):
        token, slot = torch.where(ids == number)
        part, part_error = expert(x[token].double())
        weight = weights[token, slot, None].double()
        out.index_add_(0, token, part * weight)
        error.index_add_(0, token, part_error * weight + (TOP_K + 2) * 2.0**-23 * (part * weight).abs())
    return out, error


def random_weights(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """As a checkpoint has them."""

    def matrix(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        words = torch.randint(-2**31, 2**31, (EXPERTS, n, k // 8), generator=generator).to(torch.int32)
        scales = 0.02 * (0.5 + torch.rand(EXPERTS, n, k // GROUP, generator=generator))
        return words, scales.to(torch.bfloat16)

    gate_up, gate_up_scales = matrix(2 * WIDTH, HIDDEN)
    down, down_scales = matrix(HIDDEN, WIDTH)
    return dict(gate_up=gate_up, gate_up_scales=gate_up_scales, down=down, down_scales=down_scales)


def main() -> None:
    torch.set_grad_enabled(False)
    generator = torch.Generator().manual_seed(1)
    weights = random_weights(generator)
    layer = quadrille.torch.MoELayer.from_tensors(
        **weights, group_size=GROUP, rounding="f32",
        router={"top_k": TOP_K, "scoring": "softmax", "renormalise": True})

    x = torch.randn(TOKENS, HIDDEN, generator=generator)
    logits = torch.randn(TOKENS, EXPERTS, generator=generator)
    out = layer(x, router_logits=logits)

    best, ids = logits.softmax(-1).topk(TOP_K)
    experts = [PlainExpert(*(tensor[number] for tensor in weights.values())) for number in range(EXPERTS)]
    expected, error = plain_layer(experts, x, ids, best / best.sum(-1, keepdim=True))

    difference = (out.double() - expected).abs()
    worst, room = (difference / error).max().item(), (error.median() / expected.square().mean().sqrt()).item()
    print(f"quadrille {quadrille.__version__} beside torch {torch.__version__}: {layer}")
    print(f"relative difference {float(difference.norm() / expected.norm()):.1e}; the largest is {worst:.2f} of its "
          f"bound, which is {room:.1e} of the outputs")
    if worst > 1:
        raise SystemExit("the two layers differ")
    compiled = torch.compile(layer, fullgraph=True)
    if not torch.equal(compiled(x, router_logits=logits), out):
        raise SystemExit("torch.compile changed the result")
    print("torch.compile gives the same bits")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Conversions of scales and words on torch tensors of rank 1 to 4, contiguous or not: the same bits in every version of
torch, and those of torch's own e4m3."""
import pytest

torch = pytest.importorskip("torch")

import quadrille  # noqa: E402

SHAPES = [(8,), (6, 8), (3, 6, 8), (2, 3, 6, 8)]


def _views(tensor):
    """The same values, laid out in other ways."""
    yield "contiguous", tensor
    order = list(range(tensor.ndim))[::-1]
    yield "transposed", tensor.permute(order).contiguous().permute(order)
    wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
    wide[..., ::2] = tensor
    yield "every second column", wide[..., ::2]
    memory = tensor.new_zeros(tensor.numel() + 3)
    memory[3:] = tensor.flatten()
    yield "behind an offset", memory[3:].view(tensor.shape)
    if tensor.ndim > 1:
        tall = tensor.new_zeros(2 * tensor.shape[0], *tensor.shape[1:])
        tall[1::2] = tensor
        yield "every second row", tall[1::2]


def _scales(shape):
    generator = torch.Generator().manual_seed(len(shape))
    scales = (0.01 * torch.exp(2 * torch.randn(shape, generator=generator))).to(torch.bfloat16)
    scales.view(-1, shape[-1])[0] *= 1e-5  # below the floor
    return scales


def _e4m3(x):
    return x.clamp(-448, 448).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("shape", SHAPES, ids=[f"rank {len(shape)}" for shape in SHAPES])
def test_split_of_scales(shape):
    scales = _scales(shape)
    channel = (scales.float().abs().amax(-1) / 448).clamp_min(1 / (448 * 512))
    group = _e4m3(scales.float() / channel.unsqueeze(-1))
    group8 = _e4m3(group.float() / 8)
    for name, view in _views(scales):
        found = [torch.from_dlpack(tensor) for tensor in quadrille.scales.split(view)]
        assert torch.equal(found[0], channel) and torch.equal(found[1], 8 * channel), name
        assert torch.equal(found[2], group.view(torch.uint8)) and torch.equal(found[3], group8.view(torch.uint8)), name
        pair = [torch.from_dlpack(tensor) for tensor in quadrille.scales.to_vllm(view)]
        assert torch.equal(pair[0], group8.view(torch.uint8)) and torch.equal(pair[1], 8 * channel), name


@pytest.mark.parametrize("shape", SHAPES, ids=[f"rank {len(shape)}" for shape in SHAPES])
def test_tables_of_scales(shape):
    bytes8 = torch.from_dlpack(quadrille.scales.to_vllm(_scales(shape))[0])
    expected = _e4m3(bytes8.view(torch.float8_e4m3fn).float().unsqueeze(-1) * torch.arange(-8.0, 0)).view(torch.uint8)
    for name, view in _views(bytes8):
        assert torch.equal(torch.from_dlpack(quadrille.scales.tables(view)), expected), name
        if len(shape) > 1:
            packed = torch.from_dlpack(quadrille.scales.packed_tables(view))
            assert torch.equal(packed, expected.transpose(-3, -2)), name


@pytest.mark.parametrize("shape", SHAPES, ids=[f"rank {len(shape)}" for shape in SHAPES])
def test_words(shape):
    words = torch.randint(-2**31, 2**31, shape, generator=torch.Generator().manual_seed(1)).to(torch.int32)
    flipped = words ^ -0x77777778  # 0x88888888
    for name, view in _views(words):
        assert torch.equal(torch.from_dlpack(quadrille.words.flip_sign(view)), flipped), name
        there = torch.from_dlpack(quadrille.words.unified(view))
        assert not torch.equal(there, words), name
        assert torch.equal(torch.from_dlpack(quadrille.words.unified(there)), words), name


@pytest.mark.parametrize("shape", [(64,), (6, 64), (3, 6, 64), (2, 3, 6, 64)], ids=lambda shape: f"rank {len(shape)}")
def test_quantisation(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    groups = weight.float().unflatten(-1, (-1, 32))
    scales = (groups.abs().amax(-1) / 7.5).to(torch.bfloat16)
    codes = (groups / scales.float().unsqueeze(-1)).clamp(-8, 7).round().flatten(-2).to(torch.int64) + 8
    words = (codes.unflatten(-1, (-1, 8)) << torch.arange(0, 32, 4)).sum(-1)
    for name, view in _views(weight):
        found, found_scales = (torch.from_dlpack(tensor) for tensor in quadrille.quantize(view, 32))
        assert torch.equal(found.to(torch.int64) & 0xFFFFFFFF, words) and torch.equal(found_scales, scales), name

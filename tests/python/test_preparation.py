# SPDX-License-Identifier: Apache-2.0
"""Quantisation against its definition, and prepared bytes there and back."""
import numpy as np
import pytest
from numbers_in_numpy import from_bf16, random_matrix, to_bf16, unpack

import quadrille


def quantized_in_numpy(weight, group_size):
    """(codes, scales as bf16 bits) as docs/numerics.md and the compressed-tensors library say."""
    groups = weight.reshape(*weight.shape[:-1], -1, group_size or weight.shape[-1])
    scales = to_bf16(np.abs(groups).max(axis=-1) / np.float32(7.5))
    scales[scales == 0] = to_bf16(np.float32(2**-7))
    quotient = (groups / from_bf16(scales)[..., None]).astype(np.float32)
    return np.rint(np.clip(quotient, -8, 7)).astype(np.int32).reshape(weight.shape), scales


@pytest.mark.parametrize("group_size", [32, 64, 128, None])
@pytest.mark.parametrize("shape", [(256,), (3, 256), (2, 3, 256), (2, 2, 3, 256)], ids=lambda shape: f"rank {len(shape)}")
def test_quantize_is_its_definition(shape, group_size):
    weight = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
    weight[..., :128] = 0
    codes, scales = quadrille.quantize(weight, group_size)
    expected_codes, expected_scales = quantized_in_numpy(weight, group_size)
    assert codes.shape == (*shape[:-1], 32) and codes.dtype == "int32"
    np.testing.assert_array_equal(unpack(codes.numpy()), expected_codes)
    np.testing.assert_array_equal(scales.bits().numpy(), expected_scales)
    strided = np.repeat(weight, 2, axis=-1)[..., ::2]
    np.testing.assert_array_equal(quadrille.quantize(strided, group_size)[0].numpy(), codes.numpy())


def test_quantize_takes_each_type_at_its_values():
    weight = from_bf16(to_bf16(np.random.default_rng(5).standard_normal((4, 64)))).astype(np.float32)
    half = weight.astype(np.float16)
    expected = quadrille.quantize(weight, 32)[0].numpy()
    np.testing.assert_array_equal(quadrille.quantize(to_bf16(weight), 32)[0].numpy(), expected)
    np.testing.assert_array_equal(quadrille.quantize(half, 32)[0].numpy(),
                                  quadrille.quantize(half.astype(np.float32), 32)[0].numpy())


def test_quantize_says_what_is_wrong():
    weight = np.ones((2, 64), np.float32)
    with pytest.raises(ValueError, match="group_size: expected 32, 64 or 128"):
        quadrille.quantize(weight, 16)
    with pytest.raises(ValueError, match="128"):
        quadrille.quantize(weight, 128)
    with pytest.raises(NotImplementedError, match="zero points"):
        quadrille.quantize(weight, 32, symmetric=False)
    with pytest.raises(TypeError, match="weight: expected bfloat16 or float16 or float32, found int32"):
        quadrille.quantize(weight.astype(np.int32), 32)
    weight[1, 5] = np.inf
    with pytest.raises(ValueError, match="weight: row 1, column 5: expected finite"):
        quadrille.quantize(weight, 32)


@pytest.mark.parametrize("numerics", ["exact", "vllm"])
@pytest.mark.parametrize("layout", ["cpu", "hopper"])
@pytest.mark.parametrize("group_size", [32, 64, 128, None])
def test_prepared_bytes_come_back(layout, numerics, group_size):
    words, scales = random_matrix(np.random.default_rng(6), (3, 48), group_size or 0, 192)
    for gate_up in (False, True):
        prepared = quadrille.prepare(words, scales, group_size=group_size, numerics=numerics, layout=layout,
                                     gate_up=gate_up)
        assert prepared.dtype == "uint8" and prepared.data_ptr % 64 == 0
        found = quadrille.unprepare(prepared)
        assert (found.layout, found.numerics, found.group_size, found.gate_up) == (layout, numerics, group_size, gate_up)
        np.testing.assert_array_equal(found.codes.numpy(), words)
        if numerics == "vllm":
            assert found.scales is None
        else:
            np.testing.assert_array_equal(found.scales.bits().numpy(), scales)
        again = quadrille.prepare(words, scales, group_size=group_size, numerics=numerics, layout=layout, gate_up=gate_up)
        np.testing.assert_array_equal(again.numpy(), prepared.numpy())


def test_each_spelling_of_codes_makes_the_same_bytes():
    words, scales = random_matrix(np.random.default_rng(7), (48,), 32, 64)
    expected = quadrille.prepare(words, scales, group_size=32).numpy()
    signed = quadrille.words.flip_sign(words)
    whole = unpack(words).astype(np.int8)
    np.testing.assert_array_equal(quadrille.prepare(signed, scales, group_size=32, format="int4").numpy(), expected)
    np.testing.assert_array_equal(quadrille.prepare(whole, scales, group_size=32, format="int8").numpy(), expected)
    pair = quadrille.prepare((words[:24], words[24:]), (scales[:24], scales[24:]), group_size=32).numpy()
    np.testing.assert_array_equal(pair, quadrille.prepare(words, scales, group_size=32, gate_up=True).numpy())
    whole[3, 9] = 9
    with pytest.raises(ValueError, match="row 3.*column 9"):
        quadrille.prepare(whole, scales, group_size=32, format="int8")


def test_damaged_bytes_are_refused():
    words, scales = random_matrix(np.random.default_rng(8), (48,), 32, 64)
    good = quadrille.prepare(words, scales, group_size=32).numpy().copy()
    quadrille.unprepare(good)
    for at in (0, 9, 60, 130, good.size - 1):
        bad = good.copy()
        bad[at] ^= 1
        with pytest.raises(ValueError, match="prepared bytes: "):
            quadrille.unprepare(bad)
    with pytest.raises(ValueError, match="expected [0-9]+ bytes, found"):
        quadrille.unprepare(good[:-64].copy())
    with pytest.raises(ValueError, match="head of 128 bytes"):
        quadrille.unprepare(good[:64].copy())

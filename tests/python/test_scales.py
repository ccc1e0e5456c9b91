# SPDX-License-Identifier: Apache-2.0
"""Conversions of scales and words for tensors of rank 1 to 4, contiguous or not, against their definitions in numpy."""

import os
from pathlib import Path

import numpy as np
import pytest
from numbers_in_numpy import from_bf16, from_e4m3, pack, read_safetensors, to_bf16, to_e4m3, unpack

from quadrille import scales, words

SHAPES = [(6,), (5, 6), (3, 5, 6), (2, 3, 5, 6)]


def layouts(array):
    """The same values with other strides: contiguous, transposed in memory, every second element, backwards."""
    yield "contiguous", np.ascontiguousarray(array)
    yield "transposed", np.asfortranarray(array) if array.ndim > 1 else np.ascontiguousarray(array)
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    yield "every second", wide[..., ::2]
    yield "backwards", np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    yield "broadcast", np.broadcast_to(array[:1], array.shape) if array.ndim > 1 else array


def split_in_numpy(bits):
    values = from_bf16(bits)
    channel = np.maximum(np.abs(values).max(axis=-1) / np.float32(448), np.float32(1 / (448 * 512))).astype(np.float32)
    group = to_e4m3((values / channel[..., None]).astype(np.float32))
    return channel, channel * np.float32(8), group, to_e4m3(from_e4m3(group) / 8)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"rank {len(shape)}")
def test_split_is_its_definition_for_any_strides(shape):
    rng = np.random.default_rng(len(shape))
    bits = to_bf16(rng.standard_normal(shape) * 2.0 ** rng.integers(-12, 4, shape))
    for name, array in layouts(bits):
        found = scales.split(array)
        expected = split_in_numpy(np.ascontiguousarray(array))
        for part, values in zip(found, expected):
            np.testing.assert_array_equal(part.numpy(), values, err_msg=name)
        assert found.channel_scale.shape == shape[:-1] and found.group_scale8.shape == shape
        group8, channel8 = scales.to_vllm(array)
        np.testing.assert_array_equal(group8.numpy(), expected[3])
        np.testing.assert_array_equal(channel8.numpy(), expected[1])


def test_split_of_zeros_takes_the_smallest_channel_scale():
    found = scales.split(np.zeros((2, 3), np.uint16))
    assert (found.channel_scale.numpy() == np.float32(1 / (448 * 512))).all()
    assert (found.group_scale.numpy() == 0).all()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"rank {len(shape)}")
def test_tables_hold_the_multiples(shape):
    rng = np.random.default_rng(7)
    codes = to_e4m3(rng.uniform(-56, 56, shape))
    expected = to_e4m3(from_e4m3(codes)[..., None] * -np.arange(8, 0, -1))
    for name, array in layouts(codes):
        if name == "broadcast":
            continue
        np.testing.assert_array_equal(scales.tables(array).numpy(), expected, err_msg=name)
        if len(shape) > 1:
            packed = scales.packed_tables(array).numpy()
            np.testing.assert_array_equal(packed, np.swapaxes(expected, -3, -2), err_msg=name)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"rank {len(shape)}")
def test_words_change_their_spelling_and_back(shape):
    rng = np.random.default_rng(8)
    codes = rng.integers(-8, 8, (*shape[:-1], 8 * shape[-1]))
    packed = pack(codes)
    flipped = packed ^ np.int32(-2004318072)  # 0x88888888
    for name, array in layouts(packed):
        if name == "broadcast":
            continue
        signed = words.flip_sign(array).numpy()
        np.testing.assert_array_equal(signed, flipped, err_msg=name)
        np.testing.assert_array_equal(words.flip_sign(signed).numpy(), packed, err_msg=name)
        unified = words.unified(signed).numpy()
        # 1..7 became 8 - v in their nibble; 0 and the negative ones stayed.
        nibbles = unpack(unified ^ np.int32(-2004318072))
        np.testing.assert_array_equal(nibbles, np.where(codes > 0, 8 - codes, codes), err_msg=name)
        np.testing.assert_array_equal(words.unified(unified).numpy(), signed, err_msg=name)


@pytest.mark.parametrize("group_size", [32, None])
def test_weight_bytes_are_products_rounded_to_e4m3(group_size):
    rng = np.random.default_rng(9)
    codes = rng.integers(-8, 8, (2, 3, 64))
    groups = 2 if group_size else 1
    group_scale8 = to_e4m3(rng.uniform(-56, 56, (2, 3, groups)))
    signed = words.flip_sign(pack(codes))
    found = words.to_e4m3(signed, group_scale8, group_size).numpy()
    products = np.repeat(from_e4m3(group_scale8), 64 // groups, axis=-1) * codes
    np.testing.assert_array_equal(found, np.where(codes == 0, 0, to_e4m3(products)))


def test_reorder_moves_words_and_loses_none():
    rng = np.random.default_rng(10)
    packed = rng.integers(-2**31, 2**31, (2, 32, 8), dtype=np.int64).astype(np.int32)
    found = words.reorder(packed).numpy()
    assert found.shape == packed.shape
    one = words.reorder(packed[1]).numpy()
    np.testing.assert_array_equal(found[1], one)
    count = lambda array: np.bincount(unpack(array).reshape(-1) + 8, minlength=16)
    np.testing.assert_array_equal(count(found[0]), count(packed[0]))
    assert (found != packed).any()
    with pytest.raises(NotImplementedError, match="16"):
        words.reorder(packed[:, :8])


@pytest.mark.parametrize("name", ["a_rank2_g128", "b_rank3_g128", "c_rank3_g32", "d_rank2_g64_spread",
                                  "e_rank2_channel"])
def test_every_step_is_that_of_the_other_engine(name):
    folder = Path(os.environ.get("QUADRILLE_GOLDEN", "")) / "prepare_vllm"
    if "QUADRILLE_GOLDEN" not in os.environ or not folder.is_dir():
        pytest.skip("needs the golden folder: set QUADRILLE_GOLDEN to it")
    golden = read_safetensors(folder / f"{name}.safetensors")
    k, groups = golden["codes"].shape[-1], golden["weight_scale"].shape[-1]
    found = scales.split(golden["weight_scale"])
    np.testing.assert_array_equal(found.channel_scale.numpy()[..., None], golden["channel_scale"])
    np.testing.assert_array_equal(found.channel_scale8.numpy()[..., None], golden["channel_scale8"])
    np.testing.assert_array_equal(found.group_scale.numpy(), golden["group_scale_e4m3"])
    np.testing.assert_array_equal(found.group_scale8.numpy(), golden["group_scale8_e4m3"])
    np.testing.assert_array_equal(scales.tables(found.group_scale8).numpy(), golden["lut"])
    signed = words.flip_sign(golden["weight_packed"])
    np.testing.assert_array_equal(signed.numpy(), golden["nibbles_int4"])
    np.testing.assert_array_equal(words.unified(signed).numpy(), golden["nibbles_unified"])
    np.testing.assert_array_equal(words.to_e4m3(signed, found.group_scale8, k // groups).numpy(), golden["w_mn"])


@pytest.mark.parametrize("call, error, text", [
    (lambda: scales.split(np.zeros((1, 1, 1, 1, 2), np.uint16)), ValueError, "scales: expected rank 1 to 4"),
    (lambda: scales.split(np.zeros((3, 0), np.uint16)), ValueError, r"scales: expected dimensions of at least 1.*\[3, 0\]"),
    (lambda: scales.split(np.zeros(3, np.float32)), TypeError, "scales: expected bfloat16, found float32"),
    (lambda: scales.split(np.full((2, 3), 0x7F80, np.uint16)), ValueError, "row 0, group 0: expected a finite scale"),
    (lambda: scales.split(np.array([[0, 0], [0, 0xFFC0]], np.uint16)), ValueError, "row 1, group 1"),
    (lambda: scales.packed_tables(np.zeros(3, np.uint8)), ValueError, "group_scale8: expected rank 2 to 4"),
    (lambda: words.unified(np.zeros(3, np.int64)), TypeError, "words: expected int32, found int64"),
    (lambda: words.to_e4m3(np.zeros((2, 4), np.int32), np.zeros((2, 2), np.uint8), 32), ValueError,
     "group_scale8: expected 2 rows of 1 scales .*found 2 of 2"),
])
def test_conversions_say_what_is_wrong(call, error, text):
    with pytest.raises(error, match=text):
        call()

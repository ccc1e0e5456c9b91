# SPDX-License-Identifier: Apache-2.0
"""Tensors by DLPack: what comes in, what goes out, and who keeps the memory."""
import gc
import sys
import weakref

import ml_dtypes
import numpy as np
import pytest
from numbers_in_numpy import from_bf16, random_matrix, to_bf16

import quadrille


@pytest.fixture
def linear():
    words, scales = random_matrix(np.random.default_rng(1), (32,), 32, 64)
    return quadrille.Linear.from_tensors(words, scales, group_size=32)


@pytest.fixture
def x():
    return to_bf16(np.random.default_rng(2).standard_normal((3, 64)))


class Foreign:
    """A tensor of some library: numpy's memory behind the two methods of the protocol alone."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device, self.streams = array, device, []

    def __dlpack__(self, stream=None):
        self.streams.append(stream)
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return self.device


def test_any_library_with_the_two_methods_will_do(linear, x):
    expected = linear(x).bits().numpy()
    foreign = Foreign(x)
    np.testing.assert_array_equal(linear(foreign).bits().numpy(), expected)
    assert foreign.streams == [None]
    out = np.zeros((3, 32), np.uint16)
    given = Foreign(out)
    assert linear(x, out=given) is given
    np.testing.assert_array_equal(out, expected)


def test_bf16_of_ml_dtypes_is_taken_as_it_is(linear, x):
    expected = linear(x).bits().numpy()
    np.testing.assert_array_equal(linear(x.view(ml_dtypes.bfloat16)).bits().numpy(), expected)
    out = np.zeros((3, 32), ml_dtypes.bfloat16)
    linear(x, out=out)
    np.testing.assert_array_equal(out.view(np.uint16), expected)


def test_a_result_is_read_without_a_copy(linear, x):
    wide = linear(from_bf16(x))
    array = np.from_dlpack(wide)
    assert array.ctypes.data == wide.data_ptr and array.dtype == np.float32 and array.shape == (3, 32)
    assert wide.numpy().ctypes.data == wide.data_ptr
    assert (wide.device, wide.dtype, wide.ndim, wide.nbytes, len(wide)) == ("cpu", "float32", 2, 384, 3)
    assert wide.__dlpack_device__() == (1, 0)
    assert repr(wide) == "quadrille.Tensor([3, 32], float32, cpu)"


def test_bf16_goes_to_numpy_by_value_or_by_bits(linear, x):
    result = linear(x)
    assert result.dtype == "bfloat16"
    values = np.asarray(result)
    assert values.dtype == np.float32
    bits = result.bits()
    assert bits.dtype == "uint16" and bits.data_ptr == result.data_ptr
    np.testing.assert_array_equal(values, from_bf16(bits.numpy()))
    assert np.asarray(result, dtype=np.float64).dtype == np.float64
    with pytest.raises(TypeError, match="bits: expected a tensor of 8 or 16 bits"):
        linear(from_bf16(x)).bits()


def test_memory_lives_as_long_as_anybody_looks(linear, x):
    result = linear(from_bf16(x))
    expected = result.numpy().copy()
    array = result.numpy()
    del result
    gc.collect()
    np.testing.assert_array_equal(array, expected)
    capsule = linear(from_bf16(x)).__dlpack__()  # nobody takes it
    del capsule
    versioned = linear(from_bf16(x)).__dlpack__(max_version=(1, 0))
    assert "dltensor_versioned" in repr(versioned)


def test_arguments_are_let_go(linear, x):
    class Kept(np.ndarray):
        pass

    array = from_bf16(x).view(Kept)
    gone = weakref.ref(array)
    references = sys.getrefcount(array)
    linear(array)
    assert sys.getrefcount(array) == references
    del array
    gc.collect()
    assert gone() is None


def test_a_result_is_an_argument_again():
    words, scales = random_matrix(np.random.default_rng(1), (64,), 32, 64)
    linear = quadrille.Linear.from_tensors(words, scales, group_size=32)
    x = np.random.default_rng(2).standard_normal((3, 64)).astype(np.float32)
    np.testing.assert_array_equal(linear(linear(x)).numpy(), linear(linear(x).numpy()).numpy())
    codes, code_scales = quadrille.quantize(x, 32)
    again = quadrille.Linear.from_tensors(codes, code_scales, group_size=32)
    assert again.out_features == 3


def test_the_protocol_says_no_where_it_must(linear, x):
    result = linear(x)
    with pytest.raises(BufferError, match="dl_device"):
        result.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="copy"):
        result.__dlpack__(copy=True)
    with pytest.raises(ValueError, match="stream: expected None"):
        result.__dlpack__(stream=1)
    assert result.__dlpack__(dl_device=(1, 0), copy=False)


def test_devices_and_refusals_name_the_argument(linear, x):
    with pytest.raises(ValueError, match="x: expected a tensor on the cpu or on a CUDA GPU, found DLPack device type 10"):
        linear(Foreign(x, device=(10, 0)))

    class Refuses(Foreign):
        def __dlpack__(self, **options):
            raise BufferError("it requires grad")

    with pytest.raises(ValueError, match="x: .*it refused: it requires grad"):
        linear(Refuses(x))
    with pytest.raises(TypeError, match="x: expected a tensor .*found str"):
        linear("x")
    np.testing.assert_array_equal(linear(Foreign(x, device=(3, 0))).bits().numpy(), linear(x).bits().numpy())


def test_unaligned_rows_are_read(linear, x):
    space = np.zeros(x.nbytes + 2, np.uint8)
    shifted = space[2:].view(np.uint16).reshape(x.shape)
    shifted[:] = x
    np.testing.assert_array_equal(linear(shifted).bits().numpy(), linear(x).bits().numpy())

# SPDX-License-Identifier: Apache-2.0
"""The package beside JAX: arrays go in and come out by DLPack, without torch."""
import numpy as np
import pytest

jax = pytest.importorskip("jax")

import quadrille  # noqa: E402

EXPERTS, HIDDEN, WIDTH, GROUP = 4, 128, 64, 32


def _weights():
    random = np.random.default_rng(1)

    def matrix(n, k):
        words = random.integers(-2**31, 2**31, (EXPERTS, n, k // 8)).astype(np.int32)
        scales = jax.numpy.asarray(0.02 * (0.5 + random.random((EXPERTS, n, k // GROUP))), jax.numpy.bfloat16)
        return jax.numpy.asarray(words), scales

    return (*matrix(2 * WIDTH, HIDDEN), *matrix(HIDDEN, WIDTH))


@pytest.mark.parametrize("dtype,rounding", [("float32", "f32"), ("bfloat16", "bf16")])
def test_layer_on_jax_arrays_is_the_layer_on_numpy_arrays(dtype, rounding):
    weights = _weights()
    options = {"group_size": GROUP, "router": {"top_k": 2, "scoring": "softmax"}, "rounding": rounding}
    layer = quadrille.MoELayer.from_tensors(*weights, **options)
    random = np.random.default_rng(2)
    x = jax.numpy.asarray(random.standard_normal((9, HIDDEN)), dtype)
    logits = jax.numpy.asarray(random.standard_normal((9, EXPERTS)), "float32")
    out = jax.dlpack.from_dlpack(layer(x, router_logits=logits))
    assert out.shape == (9, HIDDEN) and out.dtype == dtype

    def plain(array):  # bf16 as its bits where numpy has no such type
        array = np.asarray(array)
        return array.view(np.uint16) if array.dtype == jax.numpy.bfloat16 else array

    twin = quadrille.MoELayer.from_tensors(*map(plain, weights), **options)
    expected = np.asarray(twin(plain(x), router_logits=plain(logits)))  # bf16 comes as fp32 values
    assert np.array_equal(np.asarray(out).astype(np.float32), expected) and expected.any()


def test_linear_takes_and_gives_jax_arrays():
    words, scales, _, _ = _weights()
    linear = quadrille.Linear.from_tensors(words[0], scales[0], group_size=GROUP, rounding="f32")
    x = jax.numpy.ones((3, HIDDEN), "float32")
    out = jax.dlpack.from_dlpack(linear(x))
    assert out.shape == (3, 2 * WIDTH) and bool(jax.numpy.isfinite(out).all())

# SPDX-License-Identifier: Apache-2.0
"""On a GPU: CuPy arrays in and out by DLPack, on CuPy's current stream. bf16 travels as its bits (uint16)."""
import pytest

cupy = pytest.importorskip("cupy")
try:
    if cupy.cuda.Device().compute_capability != "90":
        pytest.skip("needs a Hopper GPU", allow_module_level=True)
except cupy.cuda.runtime.CUDARuntimeError:
    pytest.skip("needs a GPU", allow_module_level=True)

import numpy as np  # noqa: E402

import quadrille  # noqa: E402

EXPERTS, HIDDEN, WIDTH, GROUP = 4, 128, 128, 64
_ROUTER = {"top_k": 2, "scoring": "softmax"}


def _bf16_bits(array):
    return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)  # cut off, not rounded


def _weights(random):
    def matrix(n, k):
        words = random.integers(-2**31, 2**31, (EXPERTS, n, k // 8)).astype(np.int32)
        return words, _bf16_bits(0.02 * (0.5 + random.random((EXPERTS, n, k // GROUP))))

    return (*matrix(2 * WIDTH, HIDDEN), *matrix(HIDDEN, WIDTH))


@pytest.mark.parametrize("own_stream", [False, True])
def test_layer_on_cupy_arrays(own_stream):
    random = np.random.default_rng(1)
    arrays = _weights(random)
    x, logits = _bf16_bits(random.standard_normal((9, HIDDEN))), random.standard_normal((9, EXPERTS)).astype(np.float32)
    stream = cupy.cuda.Stream(non_blocking=True) if own_stream else cupy.cuda.Stream.null
    with stream:
        layer = quadrille.MoELayer.from_tensors(*map(cupy.asarray, arrays), group_size=GROUP, router=_ROUTER,
                                                stream=stream)
        out = cupy.zeros((9, HIDDEN), np.uint16)
        layer(cupy.asarray(x), router_logits=cupy.asarray(logits), out=out, stream=stream)
        found = out.get(stream=stream)
    torch = pytest.importorskip("torch")

    def moved(array):
        if array.dtype == np.uint16:
            return torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16)
        return torch.from_numpy(array).cuda()

    other = quadrille.MoELayer.from_tensors(*map(moved, arrays), group_size=GROUP, router=_ROUTER)
    expected = torch.from_dlpack(other(moved(x), router_logits=moved(logits))).view(torch.int16).cpu().numpy()
    assert np.array_equal(found, expected.view(np.uint16)) and found.any()


def test_linear_result_goes_back_to_cupy_as_fp32_input_of_other_work():
    random = np.random.default_rng(2)
    words, scales, _, _ = _weights(random)
    linear = quadrille.Linear.from_tensors(cupy.asarray(words[0]), cupy.asarray(scales[0]), group_size=GROUP)
    x = cupy.asarray(_bf16_bits(np.ones((3, HIDDEN))))
    stream = cupy.cuda.Stream(non_blocking=True)
    out = cupy.zeros((3, 2 * WIDTH), np.uint16)
    cupy.cuda.Stream.null.synchronize()
    with stream:
        linear(x, out=out, stream=stream)
        values = (out.astype(np.uint32) << 16).view(np.float32)
        assert cupy.isfinite(values).all() and (values[0] == values[2]).all()

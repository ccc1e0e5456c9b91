# SPDX-License-Identifier: Apache-2.0
"""The MoE layer and the linear layer on the CPU: their bits are those of the program's `layer`."""
import threading

import numpy as np
import pytest
from numbers_in_numpy import aligned, dequantised, from_bf16, random_matrix, read_safetensors, to_bf16, write_safetensors

import quadrille


class Case:
    """A small layer, its tokens and routes."""

    def __init__(self, seed=1, group_size=32, experts=4, hidden=64, width=96, tokens=7, top_k=2):
        rng = np.random.default_rng(seed)
        self.group_size, self.top_k = group_size, top_k
        self.gate_up, self.gate_up_scales = random_matrix(rng, (experts, 2 * width), group_size, hidden)
        self.down, self.down_scales = random_matrix(rng, (experts, hidden), group_size, width)
        self.x = to_bf16(rng.standard_normal((tokens, hidden)))
        self.logits = rng.standard_normal((tokens, experts)).astype(np.float32)
        self.ids = np.argsort(-self.logits, axis=1, kind="stable")[:, :top_k].astype(np.int32)
        self.weights = rng.uniform(0.1, 0.9, (tokens, top_k)).astype(np.float32)

    @property
    def tensors(self):
        return self.gate_up, self.gate_up_scales, self.down, self.down_scales

    def layer(self, **options):
        options = {"group_size": self.group_size or None, "router": {"top_k": self.top_k}, **options}
        return quadrille.MoELayer.from_tensors(*self.tensors, **options)


@pytest.fixture
def case():
    return Case()


@pytest.mark.parametrize("numerics", ["exact", "vllm"])
@pytest.mark.parametrize("group_size", [0, 32, 64, 128])
def test_layer_has_the_bits_of_the_program(command, tmp_path, numerics, group_size):
    case = Case(seed=group_size, group_size=group_size, hidden=256, width=128)
    write_safetensors(tmp_path / "in", {
        "w13_packed": ("I32", case.gate_up), "w13_scale": ("BF16", case.gate_up_scales),
        "w2_packed": ("I32", case.down), "w2_scale": ("BF16", case.down_scales),
        "x": ("BF16", case.x), "topk_ids": ("I32", case.ids), "topk_weights": ("F32", case.weights)})
    command("layer", tmp_path / "in", tmp_path / "out", "--numerics", numerics)
    expected = read_safetensors(tmp_path / "out")["out"]
    expected = expected if expected.dtype == np.uint16 else to_bf16(expected)
    found = case.layer(numerics=numerics)(case.x, topk_ids=case.ids, topk_weights=case.weights)
    assert found.dtype == "bfloat16" and found.shape == (7, 256)
    np.testing.assert_array_equal(found.bits().numpy(), expected)


def test_router_logits_choose_what_ids_say(case):
    layer = case.layer(router={"top_k": 2, "scoring": "softmax_after_topk"})
    chosen = np.take_along_axis(case.logits, case.ids, axis=1).astype(np.float64)
    weights = np.exp(chosen - chosen.max(axis=1, keepdims=True))
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    by_logits = layer(case.x, case.logits).numpy()
    by_ids = layer(case.x, topk_ids=case.ids, topk_weights=weights).numpy()
    # Our softmax and numpy's may part in the last bits of a weight, which then moves an output by one bf16 step.
    np.testing.assert_allclose(by_logits, by_ids, rtol=2**-7, atol=2**-9 * np.abs(by_ids).max())


def test_a_pair_is_the_stacked_tensor(case):
    width = case.gate_up.shape[1] // 2
    pair = quadrille.MoELayer.from_tensors(
        (case.gate_up[:, :width], case.gate_up[:, width:]),
        (case.gate_up_scales[:, :width], case.gate_up_scales[:, width:]), case.down, case.down_scales,
        group_size=32, router={"top_k": 2})
    np.testing.assert_array_equal(pair(case.x, case.logits).bits().numpy(),
                                  case.layer()(case.x, case.logits).bits().numpy())


def test_fp32_in_is_fp32_out(case):
    layer = case.layer()
    wide = layer(from_bf16(case.x), case.logits)
    assert wide.dtype == "float32"
    np.testing.assert_array_equal(wide.numpy(), layer(case.x, case.logits).numpy())
    # Values between two bf16 are rounded on the way in.
    np.testing.assert_array_equal(layer(from_bf16(case.x) * (1 + 2.0**-12), case.logits).numpy(), wide.numpy())
    unrounded = case.layer(rounding="f32")(from_bf16(case.x), case.logits).numpy()
    assert (unrounded != wide.numpy()).any()
    np.testing.assert_allclose(unrounded, wide.numpy(), atol=2**-5 * np.abs(unrounded).max())


def test_out_is_written_in_place(case):
    layer = case.layer()
    expected = layer(case.x, case.logits).bits().numpy()
    out = np.zeros_like(case.x)
    assert layer(case.x, case.logits, out=out) is out
    np.testing.assert_array_equal(out, expected)
    x = case.x.copy()
    layer(x, case.logits, out=x)
    np.testing.assert_array_equal(x, expected)


def test_in_place_weights_lie_in_the_memory_of_the_caller(case):
    expected = case.layer()(case.x, case.logits).bits().numpy()
    gate_up, down = aligned(case.gate_up), aligned(case.down)
    layer = quadrille.MoELayer.from_tensors(gate_up, case.gate_up_scales, down, case.down_scales, group_size=32,
                                            router={"top_k": 2}, in_place=True)
    assert (gate_up != case.gate_up).any() and (down != case.down).any()
    del gate_up, down
    np.testing.assert_array_equal(layer(case.x, case.logits).bits().numpy(), expected)


def test_what_is_overwritten_is_checked_before(case):
    gate_up, down = aligned(case.gate_up), aligned(case.down)
    make = lambda: quadrille.MoELayer.from_tensors(gate_up, case.gate_up_scales, down, case.down_scales, group_size=32,
                                                   router={"top_k": 2}, in_place=True)
    good = case.down_scales[2, 5, 1]
    case.down_scales[2, 5, 1] = 0x7FC0
    with pytest.raises(ValueError, match="expert 2.*row 5.*group 1.*finite"):
        make()
    case.down_scales[2, 5, 1] = good
    down = down.view(np.uint8).reshape(-1)[:-4].view(np.int32)[: 4 * 63 * 12].reshape(4, 63, 12)
    with pytest.raises(ValueError, match="down_scales: expected shape"):
        make()
    down = np.zeros(case.down.nbytes + 68, np.uint8)
    down = down[-down.ctypes.data % 64 + 4:][:case.down.nbytes].view(np.int32).reshape(case.down.shape)
    with pytest.raises(NotImplementedError, match="multiple of 64 bytes"):
        make()
    np.testing.assert_array_equal(gate_up, case.gate_up)


def test_a_bad_scale_is_named(case):
    case.gate_up_scales[2, 5, 1] = 0x7FC0
    with pytest.raises(ValueError, match="expert 2.*row 5, group 1.*0x7FC0"):
        case.layer()


def test_shared_expert_adds_to_the_routed_ones(case):
    rng = np.random.default_rng(9)
    gate_up, gate_up_scales = random_matrix(rng, (2 * 32,), 32, 64)
    down, down_scales = random_matrix(rng, (64,), 32, 32)
    shared = {"gate_up": gate_up, "gate_up_scales": gate_up_scales, "down": down, "down_scales": down_scales}
    both = case.layer(shared=shared)(case.x, case.logits).numpy()
    routed = case.layer()(case.x, case.logits).numpy()
    alone = quadrille.MoELayer.from_tensors(gate_up[None], gate_up_scales[None], down[None], down_scales[None],
                                            group_size=32, router={"top_k": 1, "scoring": "softmax"})
    ones = np.ones((7, 1), np.float32)
    shared_rows = alone(case.x, topk_ids=np.zeros((7, 1), np.int32), topk_weights=ones).numpy()
    assert (shared_rows != 0).any()
    # Each of the three is rounded to bf16 once: half a step of each.
    np.testing.assert_allclose(both, routed + shared_rows,
                               atol=1.5 * 2**-8 * (np.abs(routed) + np.abs(shared_rows)).max())


def test_linear_is_the_product_of_the_dequantised_weight():
    rng = np.random.default_rng(3)
    words, scales = random_matrix(rng, (48,), 64, 192)
    bias = rng.standard_normal(48).astype(np.float32)
    x = to_bf16(rng.standard_normal((5, 192)))
    linear = quadrille.Linear.from_tensors(words, scales, group_size=64, bias=bias)
    assert (linear.in_features, linear.out_features, linear.device) == (192, 48, "cpu")
    found = linear(x)
    weight = dequantised(words, scales, 64)
    expected = from_bf16(x) @ weight.T + bias
    # An e4m3 of a row whose scale is absmax / 448 is off by at most half a step, 2**-4 of itself (2**-10 of the scale
    # below), each; their sum is at most the sum of sizes. Then one rounding to bf16.
    bound = 2.0**-4 * (np.abs(from_bf16(x)) @ np.abs(weight).T) + 2.0**-8 * np.abs(expected)
    assert (np.abs(found.numpy() - expected) <= bound).all()
    assert (np.abs(found.numpy() - expected) <= bound / 4).mean() > 0.9


def test_no_tokens_and_routes_to_nowhere(case):
    layer = case.layer()
    assert layer(case.x[:0], case.logits[:0]).shape == (0, 64)
    nowhere = layer(case.x, topk_ids=np.full_like(case.ids, -1), topk_weights=case.weights)
    assert (nowhere.numpy() == 0).all()
    with pytest.raises(ValueError, match="4"):
        layer(case.x, topk_ids=np.full_like(case.ids, 4), topk_weights=case.weights)


def test_every_table_of_the_cpu_can_be_named(case):
    expected = case.layer()(case.x, case.logits).bits().numpy()
    for kernels in ("generic", "avx2"):
        np.testing.assert_array_equal(case.layer(kernels=kernels)(case.x, case.logits).bits().numpy(), expected)
    with pytest.raises(ValueError, match="generic"):
        case.layer(kernels="sse9")


def test_threads_share_a_layer():
    case = Case(tokens=33, hidden=256, width=128, group_size=128)
    layer = case.layer(threads=2)
    expected = layer(case.x, case.logits).bits().numpy()
    wrong = []

    def run():
        for _ in range(50):
            if (layer(case.x, case.logits).bits().numpy() != expected).any():
                wrong.append(1)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("change, error, text", [
    ({"format": "int5"}, ValueError, "format: expected one of 'uint4b8', 'int4', 'int8', found 'int5'"),
    ({"numerics": 1}, TypeError, "numerics: expected a string"),
    ({"group_size": 48}, ValueError, "group_size: expected 32, 64 or 128"),
    ({"group_size": 128}, ValueError, r"gate_up_scales: expected shape \[4, 192, 1\] .*found \[4, 192, 2\]"),
    ({"router": None}, TypeError, "router: expected a dict with at least 'top_k'"),
    ({"router": {"top_k": 2, "topk": 2}}, TypeError, "router: expected keys of .*found topk"),
    ({"router": {"top_k": 5}}, ValueError, "router: 5 experts a token; legal are 1 to 4"),
    ({"activation": "relu"}, ValueError, "activation: expected one of"),
    ({"gate_up_bias": np.zeros((4, 191), np.float32)}, ValueError, r"gate_up_bias: expected shape \[4, 192\]"),
    ({"shared": {"gate_up": 1}}, TypeError, "shared: expected keys of"),
    ({"stream": "a"}, TypeError, "stream: expected None, the handle as an int"),
])
def test_a_layer_says_what_is_wrong(case, change, error, text):
    with pytest.raises(error, match=text):
        case.layer(**change)


def test_weights_say_what_is_wrong(case):
    make = lambda *tensors: quadrille.MoELayer.from_tensors(*tensors, group_size=32, router={"top_k": 2})
    gate_up, gate_up_scales, down, down_scales = case.tensors
    with pytest.raises(TypeError, match="gate_up: expected int32, found float32"):
        make(gate_up.astype(np.float32), gate_up_scales, down, down_scales)
    with pytest.raises(ValueError, match=r"down: expected shape \[any, any, any\] .*found \[64, 12\]"):
        make(gate_up, gate_up_scales, down[0], down_scales)
    with pytest.raises(ValueError, match=r"gate_up: expected strides .*row-major"):
        make(gate_up[:, :, ::-1], gate_up_scales, down, down_scales)
    with pytest.raises(TypeError, match="down_scales: expected bfloat16, found float32"):
        make(gate_up, gate_up_scales, down, from_bf16(down_scales))
    # Experts may lie anywhere: every second of a larger stack.
    spread = np.repeat(gate_up, 2, axis=0)[::2]
    assert not spread.flags.c_contiguous
    np.testing.assert_array_equal(make(spread, *case.tensors[1:])(case.x, case.logits).bits().numpy(),
                                  case.layer()(case.x, case.logits).bits().numpy())


@pytest.mark.parametrize("change, error, text", [
    ({"x": np.zeros((7, 65), np.uint16)}, ValueError, r"x: expected shape \[7, 64\]"),
    ({"x": np.zeros(64, np.uint16)}, ValueError, r"x: expected rank 2, found shape \[64\]"),
    ({"x": np.zeros((7, 64), np.float64)}, TypeError, "x: expected bfloat16 or float32, found float64"),
    ({"x": np.zeros((64, 7), np.uint16).T}, ValueError, r"x: expected strides \[64, 1\] .*found \[1, 7\]"),
    ({"x": [[0.0]]}, TypeError, "x: expected a tensor .*found list"),
    ({"router_logits": np.zeros((6, 4), np.float32)}, ValueError, r"router_logits: expected shape \[7, 4\]"),
    ({"router_logits": None}, ValueError, "router_logits: expected these, or topk_ids and topk_weights"),
    ({"topk_ids": np.zeros((7, 2), np.int32)}, ValueError, "router_logits: expected either"),
    ({"router_logits": None, "topk_ids": np.zeros((7, 2), np.int64), "topk_weights": np.zeros((7, 2), np.float32)},
     TypeError, "topk_ids: expected int32, found int64"),
    ({"out": np.zeros((7, 64), np.float32)}, TypeError, "out: expected bfloat16, found float32"),
    ({"out": np.zeros((8, 64), np.uint16)}, ValueError, r"out: expected shape \[7, 64\]"),
    ({"stream": 7}, ValueError, "stream: expected None on the cpu"),
    ({"workspace": np.zeros(7, np.uint8)}, ValueError, "workspace: expected None on the cpu"),
])
def test_a_call_says_what_is_wrong(case, change, error, text):
    arguments = {"x": case.x, "router_logits": case.logits, **change}
    with pytest.raises(error, match=text):
        case.layer()(**arguments)


def test_read_only_memory_is_read_and_never_written(case):
    expected = case.layer()(case.x, case.logits).bits().numpy()
    for array in (*case.tensors, case.x, case.logits):
        array.setflags(write=False)
    np.testing.assert_array_equal(case.layer()(case.x, case.logits).bits().numpy(), expected)
    with pytest.raises(ValueError, match="out: .*(read-only|readonly)"):
        case.layer()(case.x, case.logits, out=case.x)
    with pytest.raises(ValueError, match="gate_up: .*(read-only|readonly)"):
        case.layer(in_place=True)


def test_a_forked_process_makes_its_own(child):
    process = child("""
import os, warnings, numpy as np, quadrille
warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on a fork with threads warns
codes, scales = quadrille.quantize(np.ones((32, 64), np.float32), 32)
x = np.ones((2, 64), np.float32)
make = lambda: quadrille.Linear.from_tensors(codes, scales, group_size=32, threads=2)
linear = make()
expected = linear(x).numpy()
if os.fork() == 0:
    try:
        linear(x)
    except ValueError as error:
        print(error)
    print((make()(x).numpy() == expected).all())
    raise SystemExit(0)
print(os.wait()[1], (linear(x).numpy() == expected).all())
""")
    output, errors = process.communicate(timeout=60)
    assert errors == ""
    assert output.splitlines() == [
        "host: expected the process that made it, found one that was forked from it, without its threads: make host and "
        "layers after the fork", "True", "0 True"]


@pytest.mark.parametrize("options, argument", [
    ({"router": {"top_k": 2.0}}, r"router\['top_k'\]: expected an integer"),
    ({"router": {"top_k": "2"}}, r"router\['top_k'\]: expected an integer"),
    ({"router": {"top_k": 2, "renorm_epsilon": None}}, r"router\['renorm_epsilon'\]: expected a number"),
    ({"alpha": "x"}, "alpha: expected a number"),
    ({"threads": "2"}, "threads: expected an integer"),
])
def test_plain_arguments_are_named(case, options, argument):
    with pytest.raises(TypeError, match=argument):
        case.layer(**options)


def test_experts_that_share_memory_are_not_prepared_in_place():
    words, scales = random_matrix(np.random.default_rng(2), (96,), 32, 64)
    one = aligned(words)
    experts = np.lib.stride_tricks.as_strided(one, (2, *one.shape), (0, *one.strides))
    down, down_scales = random_matrix(np.random.default_rng(3), (2, 64), 32, 48)
    before = one.copy()
    with pytest.raises(ValueError, match="experts that share"):
        quadrille.MoELayer.from_tensors(experts, np.stack([scales, scales]), aligned(down), down_scales, group_size=32,
                                        router={"top_k": 1}, in_place=True)
    assert np.array_equal(one, before)

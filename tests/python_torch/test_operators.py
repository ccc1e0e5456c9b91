# SPDX-License-Identifier: Apache-2.0
"""quadrille.torch: operators and modules give the bits of the package's layers, eagerly, compiled and in place."""
import copy
import gc
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import layer_torch as plain  # noqa: E402
import quadrille  # noqa: E402
import quadrille.torch  # noqa: E402

_ROUTER = {"top_k": plain.TOP_K, "scoring": "softmax", "renormalise": True}


def _generator(seed: int = 3):
    return torch.Generator().manual_seed(seed)


def _layer(rounding: str = "bf16", **options):
    return quadrille.torch.MoELayer.from_tensors(**plain.random_weights(_generator()), group_size=plain.GROUP,
                                                 rounding=rounding, router=_ROUTER, **options)


def _linear(rounding: str = "bf16", bias: bool = True):
    weights = plain.random_weights(_generator())
    value = torch.randn(2 * plain.WIDTH, generator=_generator()) if bias else None
    return quadrille.torch.Linear.from_tensors(weights["gate_up"][0], weights["gate_up_scales"][0],
                                               group_size=plain.GROUP, rounding=rounding, bias=value)


def _input(dtype, *shape: int):
    return torch.randn(*shape, plain.HIDDEN, generator=_generator(4)).to(dtype)


def _routes(rows: int):
    logits = torch.randn(rows, plain.EXPERTS, generator=_generator(5))
    best, ids = logits.softmax(-1).topk(plain.TOP_K)
    return logits, ids, best / best.sum(-1, keepdim=True)


DTYPES = pytest.mark.parametrize("dtype,rounding", [(torch.bfloat16, "bf16"), (torch.float32, "f32")])


@DTYPES
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_operator_gives_the_bits_of_the_package(dtype, rounding, rows):
    layer, x = _layer(rounding), _input(dtype, rows)
    logits, ids, weights = _routes(rows)
    expected = torch.from_dlpack(layer.layer(x, router_logits=logits))
    assert torch.equal(layer(x, router_logits=logits), expected)
    expected = torch.from_dlpack(layer.layer(x, topk_ids=ids.int(), topk_weights=weights))
    assert torch.equal(layer(x, topk_ids=ids, topk_weights=weights), expected)
    linear = _linear(rounding)
    assert torch.equal(linear(x), torch.from_dlpack(linear.layer(x)))


def test_layer_is_the_plain_layer():
    layer, x = _layer("f32"), _input(torch.float32, 33)
    logits, ids, weights = _routes(33)
    tensors = plain.random_weights(_generator())
    experts = [plain.PlainExpert(*(tensor[number] for tensor in tensors.values())) for number in range(plain.EXPERTS)]
    expected, bound = plain.plain_layer(experts, x, ids, weights)
    assert ((layer(x, router_logits=logits).double() - expected).abs() <= bound).all()


def test_weights_from_numpy_and_from_torch_are_the_same():
    tensors = plain.random_weights(_generator())
    arrays = {name: value.view(torch.uint16).numpy() if value.dtype == torch.bfloat16 else value.numpy()
              for name, value in tensors.items()} if hasattr(torch, "uint16") else None
    x, (logits, _, _) = _input(torch.float32, 5), _routes(5)
    other = quadrille.MoELayer.from_tensors(**arrays, group_size=plain.GROUP, rounding="f32", router=_ROUTER)
    given = np.asarray(other(x.numpy(), router_logits=logits.numpy()))
    assert np.array_equal(given.view(np.uint32), _layer("f32")(x, router_logits=logits).numpy().view(np.uint32))


def test_leading_dimensions_and_copies_where_needed():
    layer, linear = _layer(), _linear()
    x = _input(torch.bfloat16, 2, 3, 4)
    logits = torch.randn(2, 3, 4, plain.EXPERTS, generator=_generator(6))
    rows = layer(x.reshape(24, -1), router_logits=logits.reshape(24, -1))
    assert torch.equal(layer(x, router_logits=logits), rows.view_as(x))
    assert torch.equal(layer(x.transpose(0, 1), router_logits=logits.transpose(0, 1)), rows.view_as(x).transpose(0, 1))
    assert linear(x).shape == (2, 3, 4, 2 * plain.WIDTH)
    wide = torch.zeros(24, 2 * plain.HIDDEN, dtype=x.dtype)
    wide[:, ::2] = x.reshape(24, -1)
    assert torch.equal(linear(wide[:, ::2]), linear(x.reshape(24, -1)))
    assert layer(x[:0, 0, 0], router_logits=logits[:0, 0, 0]).shape == (0, plain.HIDDEN)


def test_out_is_written_in_place():
    layer, linear, x = _layer(), _linear(), _input(torch.bfloat16, 6)
    logits = _routes(6)[0]
    memory = torch.full((8, plain.HIDDEN), 7.0, dtype=x.dtype)
    expected = layer(x, router_logits=logits)
    assert layer(x, router_logits=logits, out=memory[1:7]) is not None
    assert torch.equal(memory[1:7], expected) and (memory[[0, 7]] == 7).all()
    out = torch.empty(6, 2 * plain.WIDTH, dtype=x.dtype)
    assert linear(x, out=out) is out and torch.equal(out, linear(x))
    with pytest.raises(ValueError, match=r"out: expected shape \(6, 256\), found \(5, 256\)"):
        layer(x, router_logits=logits, out=memory[:5])
    with pytest.raises(ValueError, match="out: expected a contiguous tensor"):
        layer(x, router_logits=logits, out=torch.empty(6, 512, dtype=x.dtype)[:, ::2])


@DTYPES
def test_compiled_graphs_are_whole_and_give_the_same_bits(dtype, rounding):
    layer, linear = _layer(rounding), _linear(rounding)

    def steps(x, logits):
        return layer(x * 2, router_logits=logits) + 1, linear(x) * 2

    compiled = torch.compile(steps, fullgraph=True, dynamic=True)
    for rows in (4, 9, 17):
        x, logits = _input(dtype, rows), _routes(rows)[0]
        for found, expected in zip(compiled(x, logits), steps(x, logits)):
            assert torch.equal(found, expected)


def test_many_layers_in_one_compiled_model():
    model = torch.nn.Sequential(*[_linear(bias=bool(number % 2)) for number in range(4)])
    x = _input(torch.bfloat16, 3)
    assert torch.equal(torch.compile(model, fullgraph=True)(x), model(x))


def test_operators_keep_the_rules_of_torch_library():
    layer, linear, x = _layer(), _linear(), _input(torch.bfloat16, 4)
    logits, ids, weights = _routes(4)
    operators = torch.ops.quadrille
    checks = [
        (operators.moe_layer.default, (x, logits, None, None, layer._number)),
        (operators.moe_layer.default, (x, None, ids.int(), weights, layer._number)),
        (operators.moe_layer_out.default, (x, logits, None, None, torch.empty_like(x), layer._number)),
        (operators.linear.default, (x, 2 * plain.WIDTH, linear._number)),
        (operators.linear_out.default, (x, torch.empty(4, 2 * plain.WIDTH, dtype=x.dtype), linear._number)),
    ]
    for operator, arguments in checks:
        torch.library.opcheck(operator, arguments)


def test_exported_programs_hold_the_operator():
    linear = _linear()
    program = torch.export.export(linear, (_input(torch.bfloat16, 3),))
    assert any("quadrille.linear" in str(node.target) for node in program.graph.nodes)


def test_errors_name_argument_rule_and_what_was_found():
    layer, x = _layer(), _input(torch.bfloat16, 4)
    logits, ids, weights = _routes(4)
    with pytest.raises((TypeError, ValueError), match="x"):
        layer(x[:, :128], router_logits=logits)
    with pytest.raises((TypeError, ValueError), match="x"):
        layer(x.double(), router_logits=logits)
    with pytest.raises((TypeError, ValueError), match="router_logits"):
        layer(x, router_logits=logits[:3])
    with pytest.raises((TypeError, ValueError), match="topk"):
        layer(x, topk_ids=ids)
    with pytest.raises(ValueError, match="expert 1[0-9]; legal are 0 to 7"):
        layer(x, topk_ids=ids + plain.EXPERTS, topk_weights=weights)


def test_preparation_goes_to_torchs_stream_however_tensors_are_given(monkeypatch):
    tensors, made, streams = plain.random_weights(_generator()), _layer().layer, []
    monkeypatch.setattr(quadrille.torch, "_stream", lambda device: 77)
    monkeypatch.setattr(quadrille.MoELayer, "from_tensors",
                        classmethod(lambda cls, *args, **options: streams.append(options["stream"]) or made))
    quadrille.torch.MoELayer.from_tensors(**tensors, group_size=plain.GROUP, router=_ROUTER)
    quadrille.torch.MoELayer.from_tensors(*tensors.values(), group_size=plain.GROUP, router=_ROUTER)
    gate_up = tensors["gate_up"].chunk(2, 1), tensors["gate_up_scales"].chunk(2, 1)
    quadrille.torch.MoELayer.from_tensors(*gate_up, tensors["down"], tensors["down_scales"], router=_ROUTER)
    quadrille.torch.MoELayer.from_tensors(**tensors, stream=78, router=_ROUTER)
    assert streams == [77, 77, 77, 78]


def test_gradients_are_refused_not_dropped():
    linear = _linear("f32")
    with torch.enable_grad():
        out = linear(_input(torch.float32, 2).requires_grad_())
        with pytest.raises(RuntimeError, match="quadrille.linear"):
            out.sum().backward()


def test_copies_share_weights_and_pickles_are_refused():
    linear, x = _linear(), _input(torch.bfloat16, 2)
    twin = copy.deepcopy(torch.nn.Sequential(linear))[0]
    assert twin.layer is linear.layer and torch.equal(twin(x), linear(x))
    assert not list(linear.parameters()) and not linear.state_dict()
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(linear)


def test_a_graph_that_outlives_its_layer_says_so():
    linear, x = _linear(), _input(torch.bfloat16, 2)
    number = linear._number
    del linear
    gc.collect()
    with pytest.raises(RuntimeError, match=f"layer {number} is gone"):
        torch.ops.quadrille.linear(x, 2 * plain.WIDTH, number)


def test_the_example_runs(capsys):
    plain.main()
    assert "torch.compile gives the same bits" in capsys.readouterr().out

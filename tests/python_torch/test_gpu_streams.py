# SPDX-License-Identifier: Apache-2.0
"""On a GPU: the order of work between streams, CUDA graphs, and that nothing waits on the host. Delays stand where a
missing order would be seen, and freed memory is filled with other bits."""
import random

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
    pytest.skip("needs a Hopper GPU", allow_module_level=True)

import layer_torch as plain  # noqa: E402
import quadrille  # noqa: E402
import quadrille.torch  # noqa: E402

_ROUTER = {"top_k": plain.TOP_K, "scoring": "softmax", "renormalise": True}
_CYCLES_PER_MS = 1_500_000  # about, at 1.5 GHz


def _weights(seed: int = 3):
    generator = torch.Generator().manual_seed(seed)
    return {name: value.cuda() for name, value in plain.random_weights(generator).items()}


def _prepare(weights, **options):
    return quadrille.torch.MoELayer.from_tensors(**weights, group_size=plain.GROUP, router=_ROUTER, **options)


def _batch(rows: int = 24, seed: int = 4):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, plain.HIDDEN, generator=generator).bfloat16().cuda()
    return x, torch.randn(rows, plain.EXPERTS, generator=generator).cuda()


def _expected(weights, x, logits):
    out = _prepare(weights)(x, router_logits=logits)
    torch.cuda.synchronize()
    return out


def _busy(milliseconds: float) -> None:
    torch.cuda._sleep(int(milliseconds * _CYCLES_PER_MS))


def _poison(sizes) -> None:
    """Takes memory of these sizes from the allocator, most likely the memory just freed, and fills it."""
    for block in [torch.empty(size, dtype=torch.uint8, device="cuda") for size in sizes]:
        block.fill_(0xA5)


def _is_pending(stream) -> bool:
    return not stream.query()


@pytest.mark.parametrize("given", ["handle", "context"])
def test_preparation_on_a_side_stream_while_the_default_stream_is_busy(given):
    """The weights appear late on the default stream; preparation runs on a side stream; the layer is used on the
    default stream at once, and the sources are freed and overwritten at once."""
    sources, (x, logits) = _weights(), _batch()
    expected, delays = _expected(sources, x, logits), random.Random(1)
    side = torch.cuda.Stream()
    for round_number in range(500):
        _busy(delays.choice([0, 0.05, 0.3, 1]))
        weights = {name: torch.full_like(value, 0x11 if value.dtype == torch.int32 else 9.0)
                   for name, value in sources.items()}
        _busy(delays.choice([0, 0.05, 0.3]))
        for name, value in sources.items():
            weights[name].copy_(value)
        if given == "handle":  # DLPack makes the side stream wait for torch's current stream
            layer = _prepare(weights, stream=side.cuda_stream)
        else:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                _busy(delays.choice([0, 0.2]))
                layer = _prepare(weights)
            for value in weights.values():  # torch's own rule for a tensor that another stream reads
                value.record_stream(side)
        sizes = [value.nbytes for value in weights.values()]
        del weights
        _poison(sizes)
        found = layer(x, router_logits=logits)
        assert torch.equal(found, expected), f"round {round_number}"


def test_delays_show_an_order_that_is_missing():
    """The same work without the order, so that the test above is known to see it."""
    sources, (x, logits) = _weights(), _batch()
    expected = _expected(sources, x, logits)
    side, wrong = torch.cuda.Stream(), 0
    for _ in range(20):
        weights = {name: torch.full_like(value, 0x11 if value.dtype == torch.int32 else 9.0)
                   for name, value in sources.items()}
        torch.cuda.synchronize()
        _busy(20)
        for name, value in sources.items():
            weights[name].copy_(value)
        with torch.cuda.stream(side):
            layer = _prepare(weights)
        wrong += not torch.equal(layer(x, router_logits=logits), expected)
        torch.cuda.synchronize()
    assert wrong, "the delays are too short to show anything"


def test_layer_on_a_side_stream_meets_inputs_and_outputs_of_the_default_stream():
    weights, (x, logits) = _weights(), _batch()
    layer, expected = _prepare(weights), _expected(weights, x, logits)
    side, delays = torch.cuda.Stream(), random.Random(2)
    for round_number in range(500):
        late_x, late_logits = torch.zeros_like(x), torch.zeros_like(logits)
        out = torch.zeros_like(x)
        _busy(delays.choice([0, 0.1, 0.5]))
        late_x.copy_(x), late_logits.copy_(logits)
        layer.layer(late_x, router_logits=late_logits, out=out, stream=side.cuda_stream)
        torch.cuda.current_stream().wait_stream(side)
        assert torch.equal(out, expected), f"round {round_number}"


def test_results_of_the_package_come_back_to_torch_in_order():
    weights, (x, logits) = _weights(), _batch()
    layer, expected = _prepare(weights).layer, _expected(weights, x, logits)
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            for _ in range(50):
                _busy(0.1)
                found = torch.from_dlpack(layer(x, router_logits=logits, stream=stream.cuda_stream))
                assert found.device == x.device and torch.equal(found, expected)


def test_nothing_waits_on_the_host():
    weights, (x, logits) = _weights(), _batch()
    layer = _prepare(weights)
    layer(x, router_logits=logits)
    torch.cuda.synchronize()
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            _busy(300)
            layer(x, router_logits=logits)
            assert _is_pending(stream), "the layer waited"
            _prepare(weights)
            assert _is_pending(stream), "the preparation waited"
        torch.cuda.synchronize()


def test_preparation_on_a_side_stream_does_not_wait_for_unrelated_work():
    weights, side = _weights(), torch.cuda.Stream()
    _prepare(weights)
    torch.cuda.synchronize()
    _busy(500)
    with torch.cuda.stream(side):
        layer = _prepare(weights)
    layer.layer.synchronize()
    side.synchronize()
    assert _is_pending(torch.cuda.default_stream()), "the side stream waited for the default stream"


@pytest.mark.parametrize("rows", [1, 24])
def test_captured_graph_replays_with_new_inputs(rows):
    weights = _weights()
    layer = _prepare(weights)
    linear = quadrille.torch.Linear.from_tensors(weights["gate_up"][0], weights["gate_up_scales"][0],
                                                 group_size=plain.GROUP)
    x, logits = _batch(rows)

    def steps():
        return linear(layer(x, router_logits=logits))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        steps()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = steps()
    for seed in range(5, 25):
        new_x, new_logits = _batch(rows, seed)
        x.copy_(new_x), logits.copy_(new_logits)
        graph.replay()
        replayed = out.clone()
        assert torch.equal(replayed, steps())


def test_compiled_with_cuda_graphs_gives_the_same_bits():
    layer = _prepare(_weights())
    compiled = torch.compile(lambda x, logits: layer(x * 2, router_logits=logits) + 1, mode="reduce-overhead",
                             fullgraph=True)
    with torch.no_grad():
        for seed in range(4, 12):
            x, logits = _batch(16, seed)
            assert torch.equal(compiled(x, logits).clone(), layer(x * 2, router_logits=logits) + 1)


def test_rows_do_not_depend_on_their_batch():
    layer, (x, logits) = _prepare(_weights()), _batch(64)
    whole = layer(x, router_logits=logits)
    for rows in (1, 3, 16, 33):
        assert torch.equal(layer(x[:rows], router_logits=logits[:rows]), whole[:rows])


def test_arguments_of_another_device_are_refused_before_anything_runs():
    layer, (x, logits) = _prepare(_weights()), _batch(4)
    with pytest.raises((TypeError, ValueError), match="x"):
        layer(x.cpu(), router_logits=logits)
    with pytest.raises((TypeError, ValueError), match="router_logits"):
        layer(x, router_logits=logits.cpu())
    with pytest.raises((TypeError, ValueError), match="x"):
        layer(x.float(), router_logits=logits)


def test_the_current_gpu_of_a_thread_stays():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with torch.cuda.device(1):
        layer = _prepare({name: value.to("cuda:1") for name, value in _weights().items()})
    x, logits = (tensor.to("cuda:1") for tensor in _batch())
    torch.cuda.set_device(0)
    layer(x, router_logits=logits)
    assert torch.cuda.current_device() == 0
    other = _prepare({name: value.to("cuda:1") for name, value in _weights().items()})
    assert torch.cuda.current_device() == 0
    del layer, other
    assert torch.cuda.current_device() == 0

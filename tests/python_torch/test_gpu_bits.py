# SPDX-License-Identifier: Apache-2.0
"""On a GPU: a layer gives the bits of the CPU table `hopper`, which models the tensor core (docs/numerics.md)."""
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
    pytest.skip("needs a Hopper GPU", allow_module_level=True)

import layer_torch as plain  # noqa: E402
import quadrille.torch  # noqa: E402

_ROUTER = {"top_k": plain.TOP_K, "scoring": "softmax", "renormalise": True}


@pytest.mark.parametrize("numerics", ["exact", "vllm"])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_layer_and_linear_are_the_table_hopper(numerics, rows):
    generator = torch.Generator().manual_seed(3)
    weights = plain.random_weights(generator)
    x = torch.randn(rows, plain.HIDDEN, generator=generator).bfloat16()
    logits = torch.randn(rows, plain.EXPERTS, generator=generator)
    options = {"group_size": plain.GROUP, "numerics": numerics}
    here = quadrille.torch.MoELayer.from_tensors(**weights, **options, router=_ROUTER, kernels="hopper")
    there = quadrille.torch.MoELayer.from_tensors(**{name: value.cuda() for name, value in weights.items()}, **options,
                                                  router=_ROUTER)
    assert torch.equal(there(x.cuda(), router_logits=logits.cuda()).cpu(), here(x, router_logits=logits))
    words, scales = weights["gate_up"][0], weights["gate_up_scales"][0]
    here = quadrille.torch.Linear.from_tensors(words, scales, **options, kernels="hopper")
    there = quadrille.torch.Linear.from_tensors(words.cuda(), scales.cuda(), **options)
    assert torch.equal(there(x.cuda()).cpu(), here(x))

# SPDX-License-Identifier: Apache-2.0
"""On a GPU: Hugging Face models with our layers, within the noise of bf16 that the oracles measured."""
import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
    pytest.skip("needs a Hopper GPU", allow_module_level=True)

from safetensors.torch import load_file  # noqa: E402

import quadrille.transformers  # noqa: E402
from conftest import golden_variants  # noqa: E402

golden = pytest.mark.parametrize("folder,variant", golden_variants(),
                                 ids=[f"{folder.name}-{variant}" for folder, variant in golden_variants()])


def _load(folder, variant):
    return quadrille.transformers.load(folder / variant, device="cuda", attn_implementation="eager")


@golden
def test_blocks_are_within_twice_the_noise_of_bf16(folder, variant):
    name = variant.removesuffix("-int")
    oracle = load_file(folder / f"golden-{name}.safetensors")
    info = json.loads((folder / f"golden-{name}.json").read_text())
    model = _load(folder, variant)
    blocks = [module for path, module in model.named_modules()
              if path.endswith((".mlp", ".block_sparse_moe")) and hasattr(module, "experts")]
    for block, x, expected, noise in zip(blocks, oracle["moe_input.t48"], oracle["moe_output_exact.t48"],
                                         info["moe_block_exact_bf16_vs_exact"]):
        found = block(x[None].cuda())
        found = (found[0] if isinstance(found, tuple) else found).float().cpu().view_as(expected)
        assert (found - expected).square().mean().sqrt() <= 2 * noise["rms"]


@golden
def test_generation_is_the_same_twice_and_gives_tokens(folder, variant):
    model = _load(folder, variant)
    ids = load_file(folder / f"golden-{variant.removesuffix('-int')}.safetensors")["ids.t7"].long()[None].cuda()
    texts = [model.generate(ids, max_new_tokens=16, do_sample=False) for _ in range(2)]
    assert torch.equal(*texts) and texts[0].shape[1] > ids.shape[1]

# SPDX-License-Identifier: Apache-2.0
"""quadrille.transformers: golden models give the oracles' logits, and a model is replaced whole or not at all."""
import json
import shutil

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

import quadrille.torch  # noqa: E402
import quadrille.transformers  # noqa: E402
from conftest import golden_variants  # noqa: E402

VARIANTS = golden_variants()
_NAMES = [f"{folder.name}-{variant}" for folder, variant in VARIANTS]
golden = pytest.mark.parametrize("folder,variant", VARIANTS, ids=_NAMES)
with_bf16 = pytest.mark.parametrize("folder,variant", [case for case in VARIANTS if (case[0] / "bf16").exists()])


def _softmax_scale(model):
    """The golden models of deepseek_v2 have the published code's factor, which ports leave out (golden/README.md)."""
    config = model.config
    if config.model_type == "deepseek_v2":
        scaling = json.loads((_folder_of(config) / "config.json").read_text())["rope_scaling"]
        factor = 0.1 * scaling["mscale_all_dim"] * torch.tensor(scaling["factor"]).log().item() + 1.0
        for layer in model.model.layers:
            width = config.qk_nope_head_dim + config.qk_rope_head_dim
            layer.self_attn.scaling = width**-0.5 * factor * factor
    return model


def _folder_of(config):
    return next(folder / variant for folder, variant in VARIANTS if folder.name == config.model_type)


def _load(folder, variant, numerics="exact", dtype=torch.float32):
    return _softmax_scale(quadrille.transformers.load(folder / variant, numerics=numerics, dtype=dtype,
                                                      attn_implementation="eager"))


def _unquantised(folder, dtype=torch.float32):
    return _softmax_scale(transformers.AutoModelForCausalLM.from_pretrained(
        folder / "bf16", dtype=dtype, attn_implementation="eager").eval())


def _logits(model, ids):
    return model(input_ids=ids.long()[None], use_cache=False).logits[0].float()


def _check_logits(model, folder, variant, numerics):
    """The bounds of golden/README.md: a row within 1e-3 + 8 * jitter, one row in twenty may miss it; the median row of
    the short sequences within 1e-3."""
    oracle = load_file(folder / f"golden-{variant.removesuffix('-int')}.safetensors")
    for name in ("t1", "t7", "t48", "u29", "t300"):
        if f"logits_{numerics}.{name}" not in oracle:
            continue
        expected = oracle[f"logits_{numerics}.{name}"]
        found = _logits(model, oracle[f"ids.{name}"])[-len(expected):]
        difference = (found - expected).abs().amax(-1)
        missed = difference > 1e-3 + 8 * oracle[f"row_jitter_{numerics}.{name}"]
        assert missed.sum() <= len(expected) / 20, f"{name}: {difference}"
        if name in ("t7", "t48", "u29"):
            assert difference.median() <= 1e-3, name


def _is_replaced(model):
    """No routed expert and no linear layer but head and routers is of transformers any more."""
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    left = [name for name in linears if not name.endswith((".gate", ".shared_expert_gate", "lm_head"))]
    return not left and not any(parameter.ndim == 3 for parameter in model.parameters())


@golden
@pytest.mark.parametrize("numerics", ["exact", "vllm"])
def test_loaded_golden_model_gives_the_oracles_logits(folder, variant, numerics):
    model = _load(folder, variant, numerics)
    assert _is_replaced(model)
    _check_logits(model, folder, variant, numerics)


@with_bf16
def test_replaced_golden_model_gives_the_oracles_logits(folder, variant):
    model = _unquantised(folder)
    group_size = 0 if "channel" in variant else int(variant.split("-g")[1].split("-")[0])
    names = quadrille.transformers.replace(model, group_size=group_size, quotient="bf16")
    assert _is_replaced(model) and len(names) == len(set(names))
    _check_logits(model, folder, variant, "exact")


@golden
def test_blocks_in_bf16_are_within_twice_the_noise_of_bf16(folder, variant):
    """golden/README.md: single blocks in bf16 carry the noise that golden-VARIANT.json measured on another bf16 run."""
    name = variant.removesuffix("-int")
    oracle = load_file(folder / f"golden-{name}.safetensors")
    info = json.loads((folder / f"golden-{name}.json").read_text())
    model = _load(folder, variant, dtype=torch.bfloat16)
    blocks = [module for name, module in model.named_modules()
              if name.endswith((".mlp", ".block_sparse_moe")) and hasattr(module, "experts")]
    assert len(blocks) == len(oracle["moe_input.t48"])
    for block, x, expected, noise in zip(blocks, oracle["moe_input.t48"], oracle["moe_output_exact.t48"],
                                         info["moe_block_exact_bf16_vs_exact"]):
        found = block(x[None])
        found = (found[0] if isinstance(found, tuple) else found).float().view_as(expected)
        assert (found - expected).square().mean().sqrt() <= 2 * noise["rms"]


@golden
def test_greedy_text_is_the_oracles_where_it_is_certain(folder, variant):
    """Golden tokens are fed; an argmax may differ where the margin is below 0.5 (golden/README.md)."""
    oracle = load_file(folder / f"golden-{variant.removesuffix('-int')}.safetensors")
    model = _load(folder, variant)
    ids, text = oracle["ids.t7"], oracle["greedy_exact.t7"]
    found = _logits(model, torch.cat([ids, text]))[len(ids) - 1:-1].argmax(-1)
    assert ((found == text) | (oracle["greedy_margin_exact.t7"] < 0.5)).all()


def test_generation_with_a_cache_and_compiled_forward():
    folder, variant = VARIANTS[0]
    model = _load(folder, variant)
    ids = load_file(folder / f"golden-{variant}.safetensors")["ids.t7"].long()[None]
    text = model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=True)
    assert text.shape[1] > ids.shape[1]
    expected = model(input_ids=ids, use_cache=False).logits
    compiled = torch.compile(model)
    # The rest of the model is the compiler's: fp32 sums in another order, as in another order of the oracle.
    assert (compiled(input_ids=ids, use_cache=False).logits - expected).abs().amax(-1).median() <= 1e-3


def test_router_logits_are_still_recorded():
    folder, variant = next(case for case in VARIANTS if case[0].name == "qwen2_moe")
    model = _load(folder, variant)
    ids = torch.arange(5)[None]
    recorded = model(input_ids=ids, use_cache=False, output_router_logits=True).router_logits
    assert [tuple(logits.shape) for logits in recorded if logits is not None] == [(5, 6), (5, 6)]


# --- All or nothing --------------------------------------------------------------------------------------------------


def _state(model):
    return [(name, type(module), id(module)) for name, module in model.named_modules()], {
        name: value.clone() for name, value in model.state_dict().items()}


def _assert_untouched(model, before):
    modules, weights = _state(model)
    assert modules == before[0] and weights.keys() == before[1].keys()
    assert all(torch.equal(value, before[1][name]) for name, value in weights.items())


def _small_model(**changes):
    config = transformers.Qwen3MoeConfig(**{**dict(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=64, vocab_size=64,
        intermediate_size=128, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2,
        max_position_embeddings=64), **changes})
    torch.manual_seed(1)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=changes.get("dtype", torch.float32)).eval()


@pytest.mark.parametrize("kind", ["MoELayer", "Linear"])
@pytest.mark.parametrize("at", [0, 1])
def test_a_layer_that_cannot_be_made_leaves_the_model_as_it_was(monkeypatch, kind, at):
    model = _small_model()
    before, calls, cls = _state(model), [], getattr(quadrille.torch, kind)
    make = cls.from_tensors.__func__

    def fail(self, *args, **options):
        calls.append(1)
        if len(calls) > at:
            raise MemoryError("no memory left")
        return make(self, *args, **options)

    monkeypatch.setattr(cls, "from_tensors", classmethod(fail))
    with pytest.raises(MemoryError):
        quadrille.transformers.replace(model, group_size=64)
    assert len(calls) == at + 1
    _assert_untouched(model, before)


def test_an_interruption_while_layers_go_in_takes_them_out_again(monkeypatch):
    total = len(quadrille.transformers.replace(_small_model(), group_size=64))
    for at in range(2 * total):
        model = _small_model()
        before, calls, put = _state(model), [], torch.nn.Module.__setattr__

        def interrupt(self, name, value):
            if isinstance(value, quadrille.torch._Layer):
                calls.append(name)
                if len(calls) == at + 1:
                    raise KeyboardInterrupt
            put(self, name, value)

        monkeypatch.setattr(torch.nn.Module, "__setattr__", interrupt)
        if at >= total:
            quadrille.transformers.replace(model, group_size=64)
            assert _is_replaced(model)
            break
        with pytest.raises(KeyboardInterrupt):
            quadrille.transformers.replace(model, group_size=64)
        monkeypatch.setattr(torch.nn.Module, "__setattr__", put)
        _assert_untouched(model, before)


def test_widths_that_groups_do_not_divide_are_refused_before_anything_changes():
    model = _small_model(moe_intermediate_size=96)
    before = _state(model)
    with pytest.raises(ValueError, match="mlp.experts"):
        quadrille.transformers.replace(model, group_size=64)
    _assert_untouched(model, before)


def test_other_activations_dtypes_and_experts_are_refused():
    for changes, text in [({"hidden_act": "relu"}, "expected the activation silu"),
                          ({"dtype": torch.float16}, "expected a model in bfloat16 or float32")]:
        model = _small_model(**changes)
        before = _state(model)
        with pytest.raises(ValueError, match=text):
            quadrille.transformers.replace(model, group_size=64)
        _assert_untouched(model, before)
    config = transformers.GptOssConfig(hidden_size=128, num_hidden_layers=1, num_attention_heads=2, head_dim=64,
                                       num_key_value_heads=1, vocab_size=64, intermediate_size=128,
                                       num_local_experts=2, num_experts_per_tok=1, layer_types=["full_attention"])
    model = transformers.AutoModelForCausalLM.from_config(config)
    before = _state(model)
    with pytest.raises(ValueError, match=r"experts \(GptOssExperts\): expected experts gate_up_proj"):
        quadrille.transformers.replace(model)
    _assert_untouched(model, before)


def test_linear_layers_that_are_to_stay_stay():
    model = _small_model()
    attention = model.model.layers[0].self_attn.q_proj
    names = quadrille.transformers.replace(model, group_size=64, skip=("lm_head", "*.gate", "*.self_attn.*"))
    assert sorted(names) == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    assert model.model.layers[0].self_attn.q_proj is attention


def _changed(folder, tmp_path, change):
    """A copy of a checkpoint whose tensors went through `change`."""
    shutil.copytree(folder, tmp_path / "changed")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "changed" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "changed"


def _qwen2():
    return next(folder / variant for folder, variant in VARIANTS if folder.name == "qwen2_moe")


def test_a_checkpoint_with_one_expert_less_is_refused(tmp_path):
    missing = "model.layers.2.mlp.experts.5.up_proj"

    def without(tensors):
        for name in [name for name in tensors if name.startswith(missing)]:
            del tensors[name]

    with pytest.raises(ValueError, match=f"expected quantised weights of {missing}, found none"):
        quadrille.transformers.load(_changed(_qwen2(), tmp_path, without), dtype=torch.float32)


def test_a_checkpoint_with_a_layer_more_is_refused(tmp_path):
    def more(tensors):
        for name in [name for name in tensors if ".layers.0.self_attn.q_proj." in name]:
            tensors[name.replace("q_proj", "extra_proj")] = tensors[name].clone()

    with pytest.raises(ValueError, match=r"no place for \['model.layers.0.self_attn.extra_proj'\]"):
        quadrille.transformers.load(_changed(_qwen2(), tmp_path, more), dtype=torch.float32)


def test_a_checkpoint_without_an_unquantised_weight_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected the weights \['model.norm.weight'\]"):
        quadrille.transformers.load(_changed(_qwen2(), tmp_path, lambda tensors: tensors.pop("model.norm.weight")),
                                    dtype=torch.float32)


def test_a_weight_only_checkpoint_is_refused(tmp_path):
    folder = _changed(_qwen2(), tmp_path, lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    for group in config["quantization_config"]["config_groups"].values():
        group["input_activations"] = None
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="weight-only checkpoint"):
        quadrille.transformers.load(folder, dtype=torch.float32)


def test_codes_of_a_checkpoint_go_into_a_model_that_is_there():
    folder = _qwen2()
    loaded = _load(folder.parent, folder.name)
    config = transformers.AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    quadrille.transformers.replace(model, folder)
    model.eval().load_state_dict(loaded.state_dict())
    ids = torch.arange(9)
    assert torch.equal(_logits(model, ids), _logits(loaded, ids))

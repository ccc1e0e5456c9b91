# SPDX-License-Identifier: Apache-2.0
"""Puts W4A8 layers into a Hugging Face model: replace() into one that is there, load() of a compressed-tensors folder.

For transformers 4.57 (a module per expert) and 5.x (fused experts). All layers are made before the first one is put in,
and a failure takes them out again: a model is replaced as a whole or not at all.
"""
import fnmatch
import functools
import os
from dataclasses import dataclass
from typing import Any, Callable, Optional, Sequence, Union

import torch
import transformers
from torch import Tensor, nn

import quadrille.torch
from quadrille._weight_sources import Checkpoint, OwnWeights

__all__ = ["load", "replace"]

# Linear layers that stay as they are where a model's own weights are rounded: head, routers, gates.
_SKIP = ("lm_head", "*.gate", "*.router", "*.shared_expert_gate")

# Blocks of 4.57 around a list of experts. The first route by themselves: softmax, then the best; the others have
# moe(x, ids, weights) behind their own router.
_SOFTMAX_BLOCKS = ("MixtralSparseMoeBlock", "OlmoeSparseMoeBlock", "Qwen2MoeSparseMoeBlock", "Qwen3MoeSparseMoeBlock")
_ROUTED_BLOCKS = ("DeepseekV2MoE", "DeepseekV3MoE", "Glm4MoeMoE")


def replace(model: nn.Module, checkpoint: Union[str, os.PathLike, None] = None, *, group_size: int = 128,
            quotient: str = "f32", numerics: str = "exact", skip: Sequence[str] = _SKIP) -> list[str]:
    """Replaces the routed experts and the linear layers of `model` in place; returns the names of what it replaced.

    Without `checkpoint` the model's own weights (on the CPU or a GPU) are rounded to 4 bits by quadrille.quantize with
    its `group_size` and `quotient`; linear layers whose names match a pattern of `skip` stay.
    `checkpoint` is a compressed-tensors W4A8 folder of the same model: the codes come from there, for the linear
    layers that are quantised there; the caller vouches for the other weights.
    numerics: "exact" or "vllm" (docs/numerics.md). Activations have the model's dtype: bf16, or on the CPU fp32, then
    without rounding between the steps of a layer. For inference: call the model under torch.no_grad().
    The new layers take their memory beside the old ones until all are made.
    Raises ValueError for experts of a form that is not known here, weights that W4A8 does not hold, a checkpoint that
    has more or less than the model; the model is then as it was.
    """
    sites = _find(model)
    if checkpoint is None:
        source: Any = OwnWeights(group_size, quotient)
        kept = [site for site in sites
                if site.is_experts or not any(fnmatch.fnmatch(site.name, pattern) for pattern in skip)]
    else:
        source = Checkpoint(checkpoint)
        kept = [site for site in sites if site.is_experts or source.has(site.name)]
    made = [_make(site, source, numerics, next(site.module.parameters()).device) for site in kept]
    _check_left(model, source)
    _put(kept, made)
    return [site.name for site in kept]


def load(folder: Union[str, os.PathLike], *, numerics: str = "exact", dtype: torch.dtype = torch.bfloat16,
         device: Union[str, torch.device] = "cpu", **options: Any) -> nn.Module:
    """The model of a compressed-tensors W4A8 folder, its quantised layers run by this package; in eval mode.

    The other weights are read by transformers as `dtype` (bf16, or on the CPU fp32); the weights of a replaced layer
    never exist unquantised. options: those of from_pretrained (attn_implementation="eager"). numerics as replace().
    Raises FileNotFoundError, and ValueError for a folder that is not W4A8, lacks a weight, or has one that the model
    does not.
    """
    source = Checkpoint(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    name = (config.architectures or ["none"])[0]
    base = getattr(transformers, name, None)
    if base is None:
        raise ValueError(f"{folder}/config.json: architectures: expected a class of transformers "
                         f"{transformers.__version__}, found {name}")
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    sites: list[_Site] = []

    def build(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, *args, **kwargs)
        sites[:] = [site for site in _find(self) if site.is_experts or source.has(site.name)]
        for site in sites:
            setattr(site.parent, site.attribute, nn.Identity())  # a place without weights

    # A class of the same name: transformers then renames this family's tensors as its version does.
    vacant = type(name, (base,), {"__init__": build, "__module__": base.__module__})
    model, info = vacant.from_pretrained(None, config=config, state_dict=source.rest(), output_loading_info=True,
                                         dtype=dtype, **options)
    if info["missing_keys"]:
        raise ValueError(f"{folder}: expected the weights {sorted(info['missing_keys'])[:4]}, found none of that name")
    model.__class__ = base
    model.eval().to(device)
    made = [_make(site, source, numerics, torch.device(device)) for site in sites]
    _check_left(model, source)
    _put(sites, made)
    return model


# --- Where layers go -------------------------------------------------------------------------------------------------


@dataclass
class _Site:
    """A module that goes: a linear layer, or all routed experts of a block."""

    name: str
    parent: nn.Module
    module: nn.Module
    dtype: torch.dtype
    projections: tuple = ()  # of an expert: names of gate, up, down
    top_k: int = 0
    renormalise: bool = False

    @property
    def is_experts(self) -> bool:
        return bool(self.projections)

    @property
    def attribute(self) -> str:
        return self.name.rpartition(".")[2]


def _text_config(model: nn.Module) -> Any:
    return model.config.get_text_config()


def _find(model: nn.Module) -> list[_Site]:
    """Every place for a layer of ours; ValueError where a model has experts that are none."""
    config = _text_config(model)
    modules = dict(model.named_modules())
    experts: list[_Site] = []
    for name, module in modules.items():
        parent = modules[name.rpartition(".")[0]]
        if isinstance(module, nn.ModuleList) and name.endswith(".experts"):
            reason, owner = _refuse_list(parent, module), parent
        elif not isinstance(module, nn.modules.conv._ConvNd) and any(p.ndim == 3 for p in module.parameters(False)):
            reason, owner = _refuse_fused(module), module
        else:
            continue
        if reason:
            raise ValueError(f"{name} ({type(owner).__name__}): {reason}")
        has_numbers = hasattr(next(module.children(), None), "w1")  # Mixtral's names of 4.57
        projections = ("w1", "w3", "w2") if has_numbers else ("gate_proj", "up_proj", "down_proj")
        renormalise = getattr(parent, "norm_topk_prob", True)  # Mixtral always does, and says nothing
        experts.append(_Site(name, parent, module, next(module.parameters()).dtype, projections,
                             config.num_experts_per_tok, renormalise))
    inside = tuple(site.name + "." for site in experts)
    linears = [_Site(name, modules[name.rpartition(".")[0]], module, module.weight.dtype)
               for name, module in modules.items() if isinstance(module, nn.Linear) and not name.startswith(inside)]
    return experts + linears


def _refuse_list(block: nn.Module, experts: nn.ModuleList) -> str:
    if type(block).__name__ not in _SOFTMAX_BLOCKS + _ROUTED_BLOCKS:
        return f"expected one of {', '.join(_SOFTMAX_BLOCKS + _ROUTED_BLOCKS)} around a list of experts"
    return _refuse_activation(experts[0])


def _refuse_fused(experts: nn.Module) -> str:
    shapes = {name: list(parameter.shape) for name, parameter in experts.named_parameters(recurse=False)}
    gate_up, down = shapes.get("gate_up_proj", []), shapes.get("down_proj", [])
    is_known = len(shapes) == 2 and len(gate_up) == len(down) == 3 and gate_up[1:] == [2 * down[2], down[1]]
    # An experts class with a gate of its own defines it; later releases of 5.x give the others the default one.
    is_gated = getattr(getattr(type(experts), "_apply_gate", None), "__module__", "integrations.moe").endswith(
        "integrations.moe") and getattr(experts, "has_gate", True)
    is_plain = getattr(experts, "is_concatenated", True) and not any(
        getattr(experts, name, False) for name in ("is_transposed", "experts_are_transposed", "has_post_expert_norm"))
    if not is_known or not is_gated or not is_plain:
        return ("expected experts gate_up_proj [experts, 2 * width, hidden] and down_proj [experts, hidden, width], "
                f"nothing else, gated by act_fn(gate) * up; found another form, with {shapes}")
    return _refuse_activation(experts)


def _refuse_activation(expert: nn.Module) -> str:
    found = type(getattr(expert, "act_fn", None)).__name__
    return "" if found in ("SiLU", "SiLUActivation") else f"expected the activation silu, found {found}"


# --- Making the layers and putting them in ---------------------------------------------------------------------------


class _FusedExperts(quadrille.torch.MoELayer):
    """In the place of the fused experts of 5.x, behind the block's own router."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        if top_k_weights.shape != top_k_index.shape:  # the first releases of 5.x may give a weight for every expert
            top_k_weights = top_k_weights.gather(-1, top_k_index)
        return super().forward(hidden_states, topk_ids=top_k_index, topk_weights=top_k_weights)


class _SoftmaxBlock:
    """forward() of 4.57's blocks that route by themselves, over one layer in the place of the list of experts."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits = self.gate(x)
        out = self.experts(x, router_logits=logits)
        if hasattr(self, "shared_expert"):
            out = out + torch.sigmoid(self.shared_expert_gate(x)) * self.shared_expert(x)
        return out.view(hidden_states.shape), logits


class _RoutedBlock:
    """moe() of 4.57's blocks with a router of their own."""

    def moe(self, hidden_states: Tensor, topk_indices: Tensor, topk_weights: Tensor) -> Tensor:
        return self.experts(hidden_states, topk_ids=topk_indices, topk_weights=topk_weights)


@functools.cache
def _block_class(base: type) -> type:
    """A subclass, so that what transformers does with blocks of this class (recording of router logits) goes on."""
    return type(base.__name__, (_SoftmaxBlock if base.__name__ in _SOFTMAX_BLOCKS else _RoutedBlock, base), {})


def _make(site: _Site, source: Any, numerics: str, device: torch.device) -> nn.Module:
    if site.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"{site.name}: expected a model in bfloat16 or float32, found {site.dtype}")
    common = {"numerics": numerics, "rounding": "f32" if site.dtype == torch.float32 else "bf16"}
    try:
        if not site.is_experts:
            codes = source.linear(site.name, site.module, device)
            return quadrille.torch.Linear.from_tensors(codes.weight, codes.scales, format=codes.format,
                                                       group_size=codes.group_size, bias=codes.bias, **common)
        gate, up, down = source.experts(site.name, site.module, site.projections, device)
        kind = quadrille.torch.MoELayer if isinstance(site.module, nn.ModuleList) else _FusedExperts
        router = {"top_k": site.top_k, "scoring": "softmax", "renormalise": site.renormalise}
        return kind.from_tensors((gate.weight, up.weight), (gate.scales, up.scales), down.weight, down.scales,
                                 format=gate.format, group_size=gate.group_size or down.group_size, router=router,
                                 **common)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{site.name}: {error}") from error


def _check_left(model: nn.Module, source: Any) -> None:
    left = source.left(_text_config(model).num_hidden_layers)
    if left:
        raise ValueError(f"expected a model with all quantised layers of the checkpoint, found no place for {left[:4]} "
                         f"({len(left)} in all)")


def _put(sites: Sequence[_Site], made: Sequence[nn.Module]) -> None:
    """All of them, or after an exception none."""
    undo: list[Callable[[], None]] = []
    try:
        for site, layer in zip(sites, made):
            before = getattr(site.parent, site.attribute)
            undo.append(functools.partial(setattr, site.parent, site.attribute, before))
            setattr(site.parent, site.attribute, layer)
            if isinstance(site.module, nn.ModuleList):
                undo.append(functools.partial(setattr, site.parent, "__class__", type(site.parent)))
                site.parent.__class__ = _block_class(type(site.parent))
    except BaseException:
        for step in reversed(undo):
            step()
        raise

# SPDX-License-Identifier: Apache-2.0
"""Where quadrille.transformers takes 4-bit weights from: the model's own weights, rounded now, or a compressed-tensors
folder. Both answer with Codes for a linear layer and for a layer's routed experts."""
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple, Optional, Sequence, Union

import torch
from safetensors import safe_open
from torch import Tensor, nn

import quadrille


class Codes(NamedTuple):
    """Weights of one matrix [n, k], or of a stack of them [experts, n, k]."""

    weight: Tensor  #: int32 [..., n, k / 8] (format "uint4b8") or int8 [..., n, k] (format "int8")
    scales: Tensor  #: bf16 [..., n, groups]
    format: str
    bias: Optional[Tensor] = None  #: fp32 [n], of a linear layer

    @property
    def group_size(self) -> int:
        """In features under one scale; 0 where a row has one scale."""
        groups = self.scales.shape[-1]
        k = self.weight.shape[-1] * (8 if self.format == "uint4b8" else 1)
        return 0 if groups == 1 else k // groups


class ExpertCodes(NamedTuple):
    """Weights of a layer's experts."""

    gate: Codes  #: [experts, width, hidden]
    up: Codes  #: [experts, width, hidden]
    down: Codes  #: [experts, hidden, width]


class OwnWeights:
    """Rounds the weights that the model has."""

    def __init__(self, group_size: int, quotient: str) -> None:
        self._group_size = group_size
        self._quotient = quotient

    def linear(self, name: str, module: nn.Module, device: torch.device) -> Codes:
        bias = None if module.bias is None else module.bias.detach().float()
        return self._round(name, module.weight)._replace(bias=bias)

    def experts(self, name: str, module: nn.Module, projections: Sequence[str], device: torch.device) -> ExpertCodes:
        if isinstance(module, nn.ModuleList):
            weights = [torch.stack([getattr(expert, projection).weight.detach() for expert in module])
                       for projection in projections]
        else:
            gate, up = module.gate_up_proj.detach().chunk(2, dim=1)
            weights = [gate, up, module.down_proj.detach()]
        return ExpertCodes(*(self._round(name, weight) for weight in weights))

    def left(self, depth: int) -> list[str]:
        return []

    def _round(self, name: str, weight: Tensor) -> Codes:
        if weight.is_meta:
            raise ValueError(f"{name}: expected weights in memory, found none (offloaded or not loaded)")
        try:  # on the CPU, where the rounding is defined
            made = quadrille.quantize(weight.detach().cpu(), self._group_size, quotient=self._quotient)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        words, scales = (torch.from_dlpack(tensor).to(weight.device) for tensor in made)
        return Codes(words, scales, "uint4b8")


class Checkpoint:
    """Reads a compressed-tensors W4A8 folder: pack-quantized or int-quantized, one file or shards."""

    def __init__(self, folder: Union[str, os.PathLike]) -> None:
        self._folder = Path(folder)
        self._check_config()
        index = self._folder / "model.safetensors.index.json"
        shards = ["model.safetensors"]
        if index.exists():
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        self._files: dict[str, Any] = {}
        for shard in shards:
            file = safe_open(self._folder / shard, framework="pt")
            self._files.update(dict.fromkeys(file.keys(), file))
        self._quantized = {name.removesuffix(".weight_scale") for name in self._files if name.endswith(".weight_scale")}
        self._read: set[str] = set()
        for name in self._files:
            if name.endswith((".weight_zero_point", ".weight_g_idx", ".weight_global_scale")):
                raise ValueError(f"{self._folder}: {name}: expected symmetric 4-bit weights in the order of the rows")

    def _check_config(self) -> None:
        config = json.loads((self._folder / "config.json").read_text())
        groups = config.get("quantization_config", config.get("compression_config", {})).get("config_groups", {})
        if not groups:
            raise ValueError(f"{self._folder}/config.json: expected a compressed-tensors quantization_config, "
                             "found none")
        for name, group in groups.items():
            weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
            if (weights.get("num_bits"), weights.get("type"), weights.get("symmetric")) != (4, "int", True):
                raise ValueError(f"{self._folder}/config.json: {name}: weights: expected symmetric int4, "
                                 f"found {weights}")
            if (inputs.get("num_bits"), inputs.get("type"), inputs.get("dynamic")) != (8, "float", True):
                raise ValueError(f"{self._folder}/config.json: {name}: input_activations: expected dynamic 8-bit "
                                 f"float, found {inputs or 'none: a weight-only checkpoint'}")

    def has(self, name: str) -> bool:
        """Whether the linear layer of that name is quantised here."""
        return name in self._quantized

    def rest(self) -> dict[str, Tensor]:
        """The tensors that belong to no quantised weight."""
        return {name: file.get_tensor(name) for name, file in self._files.items()
                if name.rpartition(".")[0] not in self._quantized}

    def linear(self, name: str, module: Optional[nn.Module], device: torch.device) -> Codes:
        if name not in self._quantized:
            raise ValueError(f"{self._folder}: expected quantised weights of {name}, found none")
        self._read.add(name)
        tensors = {end: self._files[f"{name}.{end}"].get_tensor(f"{name}.{end}").to(device)
                   for end in ("weight_packed", "weight", "weight_scale", "bias") if f"{name}.{end}" in self._files}
        bias = tensors.get("bias")
        if module is not None and (bias is None) != (module.bias is None):
            raise ValueError(f"{self._folder}: {name}: expected {'no' if module.bias is None else 'a'} bias as the "
                             f"model has it, found {'none' if bias is None else 'one'}")
        packed = "weight_packed" in tensors
        return Codes(tensors["weight_packed" if packed else "weight"], tensors["weight_scale"],
                     "uint4b8" if packed else "int8",
                     None if bias is None else bias.float())

    def experts(self, name: str, module: Optional[nn.Module], projections: Sequence[str],
                device: torch.device) -> ExpertCodes:
        if not self.has(f"{name}.0.{projections[0]}") and ".mlp.experts" in name:  # Mixtral, as its checkpoints say it
            name, projections = name.replace(".mlp.experts", ".block_sparse_moe.experts"), ("w1", "w3", "w2")
        count = 0
        while self.has(f"{name}.{count}.{projections[0]}"):
            count += 1
        stacks = []
        for projection in projections:
            each = [self.linear(f"{name}.{expert}.{projection}", None, device) for expert in range(max(count, 1))]
            stacks.append(Codes(torch.stack([codes.weight for codes in each]),
                                torch.stack([codes.scales for codes in each]), each[0].format))
        return ExpertCodes(*stacks)

    def left(self, depth: int) -> list[str]:
        """Quantised layers that nobody asked for, in the `depth` layers of the model (later ones predict drafts)."""
        layer = re.compile(r"\.layers\.(\d+)\.")
        behind = {name for name in self._quantized if (found := layer.search(name)) and int(found[1]) >= depth}
        return sorted(self._quantized - self._read - behind)

# SPDX-License-Identifier: Apache-2.0
"""The MoE layer and the linear layer as PyTorch operators and modules for inference: eager, compiled, in CUDA graphs.

Pure Python over quadrille.MoELayer and quadrille.Linear, for torch 2.4 and later. Called by quadrille.transformers.
"""
import itertools
import weakref
from typing import Any, Optional

import torch
from torch import Tensor, nn

import quadrille

__all__ = ["Linear", "MoELayer"]

# An operator's arguments are tensors and numbers, so a layer is named by a number. A graph keeps the number, the
# module keeps the layer.
_layers: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def _register(layer: Any) -> int:
    number = next(_numbers)
    _layers[number] = layer
    return number


def _layer(number: int) -> Any:
    layer = _layers.get(number)
    if layer is None:
        raise RuntimeError(f"quadrille.torch: layer {number} is gone, but a compiled graph still calls it: keep the "
                           "module that was compiled")
    return layer


def _stream(device: torch.device) -> Optional[int]:
    """The handle of torch's current stream; from the default stream (0) the engine forks and joins by itself."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None


def _call(layer: Any, x: Tensor, out: Tensor, *inputs: Optional[Tensor]) -> None:
    # detach(): a tensor that requires grad has no DLPack. Scratch is torch's, so that a graph's pool holds it.
    tensors = [None if given is None else given.detach() for given in (x, *inputs)]
    stream = None if layer.device == "cpu" else _stream(x.device)
    scratch = {}
    if stream is not None:
        size = layer.workspace_bytes(x.shape[0])
        scratch["workspace"] = torch.empty(size, dtype=torch.uint8, device=x.device)
    layer(*tensors, out=out.detach(), stream=stream, **scratch)


@torch.library.custom_op("quadrille::moe_layer", mutates_args=())
def _moe_layer(x: Tensor, router_logits: Optional[Tensor], topk_ids: Optional[Tensor], topk_weights: Optional[Tensor],
               layer: int) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _call(_layer(layer), x, out, router_logits, topk_ids, topk_weights)
    return out


@_moe_layer.register_fake
def _(x: Tensor, router_logits: Optional[Tensor], topk_ids: Optional[Tensor], topk_weights: Optional[Tensor],
      layer: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("quadrille::moe_layer_out", mutates_args=("out",))
def _moe_layer_out(x: Tensor, router_logits: Optional[Tensor], topk_ids: Optional[Tensor],
                   topk_weights: Optional[Tensor], out: Tensor, layer: int) -> None:
    _call(_layer(layer), x, out, router_logits, topk_ids, topk_weights)


@torch.library.custom_op("quadrille::linear", mutates_args=())
def _linear(x: Tensor, out_features: int, layer: int) -> Tensor:
    out = x.new_empty(x.shape[0], out_features)
    _call(_layer(layer), x, out)
    return out


@_linear.register_fake
def _(x: Tensor, out_features: int, layer: int) -> Tensor:
    return x.new_empty(x.shape[0], out_features)


@torch.library.custom_op("quadrille::linear_out", mutates_args=("out",))
def _linear_out(x: Tensor, out: Tensor, layer: int) -> None:
    _call(_layer(layer), x, out)


class _Layer(nn.Module):
    """A prepared layer of the engine as a module. The weights are no parameters: state_dict() has none, .to() moves
    none, a copy shares them."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self._number = _register(layer)

    def __deepcopy__(self, memo: dict) -> "_Layer":
        return type(self)(self.layer)

    def __reduce__(self) -> Any:
        raise TypeError(f"quadrille.torch.{type(self).__name__} cannot be pickled: prepared weights belong to this "
                        "process and machine; save the checkpoint tensors and call from_tensors() again")


class MoELayer(_Layer):
    """A Mixture-of-Experts layer. `layer`: a quadrille.MoELayer."""

    @classmethod
    def from_tensors(cls, *args: Any, **options: Any) -> "MoELayer":
        """Prepares the weights; arguments as quadrille.MoELayer.from_tensors(). For tensors on a GPU without `stream`
        the preparation is enqueued behind the work on torch's current stream."""
        return cls(_prepared(quadrille.MoELayer, args, options))

    def forward(self, x: Tensor, router_logits: Optional[Tensor] = None, topk_ids: Optional[Tensor] = None,
                topk_weights: Optional[Tensor] = None, *, out: Optional[Tensor] = None) -> Tensor:
        """x [..., hidden] bf16 (on the CPU fp32 as well, then without rounding between the steps) -> the same shape
        and dtype, contiguous; row by row, so the leading dimensions do not matter.

        router_logits [..., num_experts], or topk_ids (any integers, -1: nowhere) and topk_weights, both [..., top_k].
        Logits and weights of any dtype are taken as fp32. out: the result's place, contiguous, of x's shape and dtype.
        On torch's current stream, without waiting. Raises TypeError or ValueError as quadrille.MoELayer.
        """
        rows = _rows(x)
        inputs = (_rows(router_logits, torch.float32), _rows(topk_ids, torch.int32), _rows(topk_weights, torch.float32))
        if out is None:
            return _moe_layer(rows, *inputs, self._number).view(x.shape)
        _moe_layer_out(rows, *inputs, _out_rows(out, x.shape), self._number)
        return out

    def extra_repr(self) -> str:
        return f"num_experts={self.layer.num_experts}, top_k={self.layer.top_k}, hidden_size={self.layer.hidden_size}"


class Linear(_Layer):
    """A linear layer. `layer`: a quadrille.Linear."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        # Plain numbers: a compiler's trace does not look into the package's objects.
        self.in_features: int = layer.in_features
        self.out_features: int = layer.out_features

    @classmethod
    def from_tensors(cls, *args: Any, **options: Any) -> "Linear":
        """Prepares the weights; arguments as quadrille.Linear.from_tensors(), the stream as MoELayer.from_tensors()."""
        return cls(_prepared(quadrille.Linear, args, options))

    def forward(self, x: Tensor, *, out: Optional[Tensor] = None) -> Tensor:
        """x [..., in_features] bf16 (on the CPU fp32 as well) -> [..., out_features] of its dtype; `out`, stream and
        errors as MoELayer."""
        shape = (*x.shape[:-1], self.out_features)
        if out is None:
            return _linear(_rows(x), self.out_features, self._number).view(shape)
        _linear_out(_rows(x), _out_rows(out, shape), self._number)
        return out

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def _prepared(kind: Any, args: tuple, options: dict[str, Any]) -> Any:
    first = args[0] if args else options.get("gate_up", options.get("weight"))
    first = first[0] if isinstance(first, (tuple, list)) else first
    if isinstance(first, Tensor) and options.get("stream") is None:
        options = {**options, "stream": _stream(first.device)}
    return kind.from_tensors(*args, **options)


def _rows(value: Optional[Tensor], dtype: Optional[torch.dtype] = None) -> Optional[Tensor]:
    """[..., n] as contiguous [rows, n]; a copy only where it has to be."""
    if value is None:
        return None
    return value.reshape(-1, value.shape[-1]).to(dtype or value.dtype).contiguous()


def _out_rows(out: Tensor, shape: tuple) -> Tensor:
    if tuple(out.shape) != tuple(shape):
        raise ValueError(f"out: expected shape {tuple(shape)}, found {tuple(out.shape)}")
    if not out.is_contiguous():
        raise ValueError(f"out: expected a contiguous tensor, found strides {tuple(out.stride())}")
    return out.view(-1, shape[-1])

# SPDX-License-Identifier: Apache-2.0
# The Qwen3-MoE architecture at toy size, as plain torch: all experts are computed densely and weighted by the router
# (zero outside the top k), which is exact and one large product per projection. Used for training (train.py) and, with a
# key/value cache, for evaluation (evaluate.py). to_hf / from_hf translate to the names of Qwen3MoeForCausalLM.

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


LETTER_WEIGHT = 10.0  # of the letter of an option: one token decides a whole question


@dataclass
class Shape:
    vocab: int = 2000
    hidden: int = 256
    layers: int = 4
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 32
    experts: int = 16
    top_k: int = 4
    width: int = 128
    theta: float = 10000.0
    eps: float = 1e-6
    positions: int = 2048

    def hf_config(self, eos, pad):
        return {
            "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
            "bos_token_id": None, "decoder_sparse_step": 1, "eos_token_id": eos, "head_dim": self.head_dim,
            "hidden_act": "silu", "hidden_size": self.hidden, "initializer_range": 0.02,
            "intermediate_size": self.width * self.top_k, "max_position_embeddings": self.positions,
            "max_window_layers": self.layers, "mlp_only_layers": [], "model_type": "qwen3_moe",
            "moe_intermediate_size": self.width, "norm_topk_prob": True, "num_attention_heads": self.heads,
            "num_experts": self.experts, "num_experts_per_tok": self.top_k, "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads, "output_router_logits": False, "pad_token_id": pad,
            "rms_norm_eps": self.eps, "rope_scaling": None, "rope_theta": self.theta, "router_aux_loss_coef": 0.001,
            "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
            "transformers_version": "4.57.6", "use_cache": True, "use_sliding_window": False, "vocab_size": self.vocab,
        }


def rms_norm(x, weight, eps):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)


def rotate(x, cos, sin):
    """RoPE in halves (NeoX); x [B, H, T, D], cos and sin broadcast to it."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def fake_e4m3(x):
    """x rounded to e4m3 with one scale per row (the last dimension)."""
    scale = (x.float().abs().amax(-1, keepdim=True) / 448).clamp_min(1 / (448 * 512))
    return ((x.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale).to(x.dtype)


def fake_int4(w, group=128):
    """w rounded to int4 in groups of `group` along the last dimension, bf16 scales of absmax / 7.5."""
    g = w.float().reshape(*w.shape[:-1], -1, group)
    scale = (g.abs().amax(-1, keepdim=True) / 7.5).bfloat16().float().clamp_min(1e-12)
    return (torch.round((g / scale).clamp(-8, 7)) * scale).reshape(w.shape).to(w.dtype)


class Layer(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        # Training: a 0-d tensor, 1 while weights are rounded to int4 in the forward pass.
        self.register_buffer("mix", None, persistent=False)
        h, q, kv = s.hidden, s.heads * s.head_dim, s.kv_heads * s.head_dim
        out_std = 0.5 / math.sqrt(2 * s.layers)

        def weight(*size, std):
            return nn.Parameter(torch.randn(*size) * std)

        self.norm1, self.norm2 = nn.Parameter(torch.ones(h)), nn.Parameter(torch.ones(h))
        self.q_norm, self.k_norm = nn.Parameter(torch.ones(s.head_dim)), nn.Parameter(torch.ones(s.head_dim))
        self.q, self.k, self.v = weight(q, h, std=h**-0.5), weight(kv, h, std=h**-0.5), weight(kv, h, std=h**-0.5)
        self.o = weight(h, q, std=out_std * q**-0.5)
        self.router = weight(s.experts, h, std=0.02)
        self.gate_up = weight(s.experts, 2, s.width, h, std=h**-0.5)
        self.down = weight(s.experts, h, s.width, std=out_std * s.width**-0.5)

    def attention(self, x, cos, sin, cache, mask):
        s = self.s
        b, t, _ = x.shape
        q = F.linear(x, self.w(self.q)).view(b, t, s.heads, s.head_dim)
        k = F.linear(x, self.w(self.k)).view(b, t, s.kv_heads, s.head_dim)
        v = F.linear(x, self.w(self.v)).view(b, t, s.kv_heads, s.head_dim).transpose(1, 2)
        q = rotate(rms_norm(q, self.q_norm, s.eps).transpose(1, 2), cos, sin)
        k = rotate(rms_norm(k, self.k_norm, s.eps).transpose(1, 2), cos, sin)
        if cache is not None:
            k, v = cache.append(self, k, v)
        n = s.heads // s.kv_heads
        k, v = k.repeat_interleave(n, dim=1), v.repeat_interleave(n, dim=1)
        y = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=mask, is_causal=mask is None)
        return F.linear(self.act(y.transpose(1, 2).reshape(b, t, -1)), self.w(self.o))

    def route(self, x):
        """(weights [N, E], zero outside the top k; load-balancing loss)."""
        s = self.s
        logits = F.linear(x, self.router).float()
        p = logits.softmax(-1)
        mine, other = logits.detach()[:, :, None], logits.detach()[:, None, :]
        index = torch.arange(s.experts, device=x.device)
        lower = index[None, :] < index[:, None]
        chosen = ((other > mine) | ((other == mine) & lower)).sum(-1) < s.top_k
        picked = p * chosen
        balance = s.experts * (chosen.float().mean(0) / s.top_k * p.mean(0)).sum()
        return picked / picked.sum(-1, keepdim=True), balance

    def moe(self, x):
        s = self.s
        weights, balance = self.route(x)
        h = F.linear(self.act(x), self.w(self.gate_up).view(-1, s.hidden)).view(-1, s.experts, 2, s.width)
        h = self.act(F.silu(h[:, :, 0]) * h[:, :, 1]) * weights[:, :, None].to(h.dtype)
        down = self.w(self.down).transpose(1, 2).reshape(s.experts * s.width, s.hidden)
        return h.reshape(-1, s.experts * s.width) @ down.to(h.dtype), balance

    def forward(self, x, cos, sin, cache=None, mask=None):
        s = self.s
        x = x + self.attention(self.act(rms_norm(x, self.norm1, s.eps)), cos, sin, cache, mask)
        y, balance = self.moe(rms_norm(x, self.norm2, s.eps).view(-1, s.hidden))
        return x + y.view(x.shape), balance

    quantised = False  # evaluation: round activations to e4m3 (weights are rounded once, by quantise_)

    def act(self, x):
        return fake_e4m3(x) if self.quantised else x

    def w(self, weight):
        if self.mix is None:
            return weight
        return weight + self.mix * (fake_int4(weight) - weight).detach()


class Model(nn.Module):
    compute_dtype = None  # of activations; None: that of the weights. Training sets bf16 (with autocast).

    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.embed = nn.Parameter(torch.randn(s.vocab, s.hidden) * 0.5)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = nn.Parameter(torch.ones(s.hidden))
        self.head = nn.Parameter(torch.randn(s.vocab, s.hidden) * 0.5 * s.hidden**-0.5)
        angle = torch.arange(s.positions)[:, None] * s.theta ** (-torch.arange(0, s.head_dim, 2) / s.head_dim)
        angle = torch.cat((angle, angle), dim=-1)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids, positions=None, cache=None, mask=None):
        """Hidden states after the last norm and the mean load-balancing loss; ids [B, T]."""
        dtype = self.compute_dtype or self.embed.dtype
        x = F.embedding(ids, self.embed).to(dtype)
        if positions is None:
            cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        else:
            cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        cos, sin = cos.to(dtype), sin.to(dtype)
        total = 0.0
        for layer in self.layers:
            x, balance = layer(x, cos, sin, cache, mask)
            total = total + balance
        return rms_norm(x, self.norm, self.s.eps), total / len(self.layers)

    def loss(self, rows):
        """rows int32 [B, T + 1], bits as stream.py sets them; (weighted cross entropy, balance loss)."""
        ids = (rows & 0x3FFF).long()
        target = rows[:, 1:].flatten()
        learn = (target >= 0x8000) * (1.0 + (LETTER_WEIGHT - 1.0) * ((target & 0x4000) != 0))
        h, balance = self(ids[:, :-1])
        logits = F.linear(h, self.head).flatten(0, 1).float()
        each = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
        return (each * learn).sum() / learn.sum(), balance


ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}


def to_hf(model):
    """State by Hugging Face names, bf16, on the CPU."""
    out = {"model.embed_tokens.weight": model.embed, "model.norm.weight": model.norm, "lm_head.weight": model.head}
    for i, layer in enumerate(model.layers):
        p = f"model.layers.{i}."
        out[p + "input_layernorm.weight"], out[p + "post_attention_layernorm.weight"] = layer.norm1, layer.norm2
        for ours, theirs in ATTENTION.items():
            out[f"{p}self_attn.{theirs}.weight"] = getattr(layer, ours)
        out[p + "self_attn.q_norm.weight"], out[p + "self_attn.k_norm.weight"] = layer.q_norm, layer.k_norm
        out[p + "mlp.gate.weight"] = layer.router
        for e in range(model.s.experts):
            q = f"{p}mlp.experts.{e}."
            out[q + "gate_proj.weight"], out[q + "up_proj.weight"] = layer.gate_up[e, 0], layer.gate_up[e, 1]
            out[q + "down_proj.weight"] = layer.down[e]
    return {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in out.items()}


@torch.no_grad()
def from_hf(model, state):
    """Copies tensors of Hugging Face names into the model; the inverse of to_hf."""
    def put(target, name):
        target.copy_(state[name].to(target.dtype))

    put(model.embed, "model.embed_tokens.weight"), put(model.norm, "model.norm.weight"), put(model.head, "lm_head.weight")
    for i, layer in enumerate(model.layers):
        p = f"model.layers.{i}."
        put(layer.norm1, p + "input_layernorm.weight"), put(layer.norm2, p + "post_attention_layernorm.weight")
        for ours, theirs in ATTENTION.items():
            put(getattr(layer, ours), f"{p}self_attn.{theirs}.weight")
        put(layer.q_norm, p + "self_attn.q_norm.weight"), put(layer.k_norm, p + "self_attn.k_norm.weight")
        put(layer.router, p + "mlp.gate.weight")
        for e in range(model.s.experts):
            q = f"{p}mlp.experts.{e}."
            put(layer.gate_up[e, 0], q + "gate_proj.weight"), put(layer.gate_up[e, 1], q + "up_proj.weight")
            put(layer.down[e], q + "down_proj.weight")
    return model


@torch.no_grad()
def quantise_(model):
    """Rounds every linear but router and lm_head to int4 (group 128) and switches e4m3 activations on."""
    for layer in model.layers:
        layer.quantised = True
        for w in (layer.q, layer.k, layer.v, layer.o, layer.gate_up, layer.down):
            w.copy_(fake_int4(w))
    return model

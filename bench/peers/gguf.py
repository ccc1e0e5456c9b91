# SPDX-License-Identifier: Apache-2.0
"""Writes a GGUF file (version 3) of a Mixture-of-Experts shape with random Q4_0 weights, so that llama.cpp can be
measured on a shape whose weights nobody has here. llama_cpp.py calls it; needs Python alone."""
import array
import math
import random
import struct
from dataclasses import dataclass

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
TYPE_F32, TYPE_Q4_0 = 0, 2
VALUE_UINT32, VALUE_FLOAT32, VALUE_STRING = 4, 6, 8
FILE_TYPE_MOSTLY_Q4_0 = 2
BLOCK_WEIGHTS, BLOCK_BYTES = 32, 18  # fp16 scale, then 32 codes; a weight is scale * (code - 8)
CODE_DEVIATION = math.sqrt((16 * 16 - 1) / 12 + 0.25)  # of code - 8 with equally likely codes
PIECE_BLOCKS = 1 << 20


@dataclass(frozen=True)
class Shape:
    """A decoder of num_layers equal MoE layers, in the words of a config.json."""
    name: str
    architecture: str  # as llama.cpp names it
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    expert_width: int
    layers: int
    vocabulary: int
    rope_theta: float
    epsilon: float
    qk_norm: bool

    def attention_weights(self):
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)

    def bytes_a_token(self, context):
        """Bytes that one decoded token must read: chosen experts, attention, router, head in Q4_0 (router in f32), and
        the keys and values of `context` positions in fp16. Norms and the embedding's row are left out."""
        expert = 3 * self.hidden * self.expert_width
        weights = self.layers * (self.attention_weights() + self.top_k * expert) + self.hidden * self.vocabulary
        router = self.layers * self.hidden * self.experts * 4
        cache = self.layers * context * 2 * self.kv_heads * self.head_dim * 2
        return weights * BLOCK_BYTES // BLOCK_WEIGHTS + router + cache


@dataclass(frozen=True)
class Tensor:
    name: str
    dims: tuple  # the fastest dimension first
    kind: int
    deviation: float  # 0: all ones

    def count(self):
        return math.prod(self.dims)

    def size(self):
        return self.count() * 4 if self.kind == TYPE_F32 else self.count() // BLOCK_WEIGHTS * BLOCK_BYTES


def tensors_of(shape):
    """All tensors of the file in order; weights deviate by 1 / sqrt(inputs), so that activations keep their size."""
    def linear(name, inputs, *outputs, kind=TYPE_Q4_0):
        return Tensor(name, (inputs, *outputs), kind, 1 / math.sqrt(inputs))

    def ones(name, width):
        return Tensor(name, (width,), TYPE_F32, 0.0)

    q_width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    out = [Tensor("token_embd.weight", (shape.hidden, shape.vocabulary), TYPE_Q4_0, 1.0),
           ones("output_norm.weight", shape.hidden),
           linear("output.weight", shape.hidden, shape.vocabulary)]
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        out += [ones(block + "attn_norm.weight", shape.hidden),
                linear(block + "attn_q.weight", shape.hidden, q_width),
                linear(block + "attn_k.weight", shape.hidden, kv_width),
                linear(block + "attn_v.weight", shape.hidden, kv_width),
                linear(block + "attn_output.weight", q_width, shape.hidden)]
        if shape.qk_norm:
            out += [ones(block + "attn_q_norm.weight", shape.head_dim), ones(block + "attn_k_norm.weight", shape.head_dim)]
        out += [ones(block + "ffn_norm.weight", shape.hidden),
                linear(block + "ffn_gate_inp.weight", shape.hidden, shape.experts, kind=TYPE_F32),
                linear(block + "ffn_gate_exps.weight", shape.hidden, shape.expert_width, shape.experts),
                linear(block + "ffn_up_exps.weight", shape.hidden, shape.expert_width, shape.experts),
                linear(block + "ffn_down_exps.weight", shape.expert_width, shape.hidden, shape.experts)]
    return out


def metadata_of(shape):
    own = shape.architecture + "."
    return [("general.architecture", VALUE_STRING, shape.architecture),
            ("general.name", VALUE_STRING, shape.name),
            ("general.file_type", VALUE_UINT32, FILE_TYPE_MOSTLY_Q4_0),
            (own + "block_count", VALUE_UINT32, shape.layers),
            (own + "context_length", VALUE_UINT32, 32768),
            (own + "embedding_length", VALUE_UINT32, shape.hidden),
            (own + "feed_forward_length", VALUE_UINT32, shape.expert_width),
            (own + "expert_feed_forward_length", VALUE_UINT32, shape.expert_width),
            (own + "expert_count", VALUE_UINT32, shape.experts),
            (own + "expert_used_count", VALUE_UINT32, shape.top_k),
            (own + "attention.head_count", VALUE_UINT32, shape.heads),
            (own + "attention.head_count_kv", VALUE_UINT32, shape.kv_heads),
            (own + "attention.key_length", VALUE_UINT32, shape.head_dim),
            (own + "attention.value_length", VALUE_UINT32, shape.head_dim),
            (own + "attention.layer_norm_rms_epsilon", VALUE_FLOAT32, shape.epsilon),
            (own + "rope.freq_base", VALUE_FLOAT32, shape.rope_theta),
            (own + "rope.dimension_count", VALUE_UINT32, shape.head_dim),
            (own + "vocab_size", VALUE_UINT32, shape.vocabulary),
            ("tokenizer.ggml.model", VALUE_STRING, "no_vocab")]


def _text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _value(kind, value):
    if kind == VALUE_STRING:
        return struct.pack("<I", kind) + _text(value)
    return struct.pack("<If" if kind == VALUE_FLOAT32 else "<II", kind, value)


def _aligned(size):
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def header_of(shape, tensors):
    metadata = metadata_of(shape)
    out = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, kind, value in metadata:
        out += _text(key) + _value(kind, value)
    offset = 0
    for tensor in tensors:
        out += _text(tensor.name) + struct.pack("<I", len(tensor.dims))
        out += struct.pack(f"<{len(tensor.dims)}Q", *tensor.dims) + struct.pack("<IQ", tensor.kind, offset)
        offset += _aligned(tensor.size())
    return bytes(out) + bytes(_aligned(len(out)) - len(out))


def q4_0_blocks(generator, blocks, deviation):
    """Random codes; scales that share the high byte of the fp16 that gives the deviation: at most a quarter off."""
    data = bytearray(generator.randbytes(blocks * BLOCK_BYTES))
    high = struct.pack("<e", deviation / CODE_DEVIATION)[1]
    data[1::BLOCK_BYTES] = bytes([high]) * blocks
    return data


def _write_tensor(file, generator, tensor):
    if tensor.kind == TYPE_Q4_0:
        left = tensor.count() // BLOCK_WEIGHTS
        while left > 0:
            piece = min(left, PIECE_BLOCKS)
            file.write(q4_0_blocks(generator, piece, tensor.deviation))
            left -= piece
    elif tensor.deviation == 0:
        array.array("f", [1.0] * tensor.count()).tofile(file)
    else:
        bound = tensor.deviation * math.sqrt(3)
        array.array("f", (generator.uniform(-bound, bound) for _ in range(tensor.count()))).tofile(file)
    file.write(bytes(_aligned(tensor.size()) - tensor.size()))


def write(path, shape, seed=1):
    """The whole file; the same bytes for the same seed."""
    generator = random.Random(seed)
    tensors = tensors_of(shape)
    with open(path, "wb") as file:
        file.write(header_of(shape, tensors))
        for tensor in tensors:
            _write_tensor(file, generator, tensor)

# SPDX-License-Identifier: Apache-2.0
"""Number formats and checkpoint tensors in numpy, written from their definitions: what the tests compare with."""
import json
import struct

import numpy as np


def to_bf16(values):
    """Bits (uint16) of fp32 values, rounded to nearest even. No NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (np.ascontiguousarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def _e4m3_values():
    values = []
    for code in range(127):
        exponent, mantissa = code >> 3, code & 7
        values.append(mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10))
    return np.array(values)


E4M3 = _e4m3_values()  # of codes 0x00..0x7E


def from_e4m3(codes):
    values = E4M3[np.asarray(codes) & 0x7F]
    return np.where(np.asarray(codes) & 0x80, -values, values)


def to_e4m3(values):
    """Codes of values within 448, rounded to nearest, ties to the even code; the sign of a zero stays."""
    values = np.asarray(values, np.float64)
    size = np.minimum(np.abs(values), 448.0)
    above = np.minimum(np.searchsorted(E4M3, size), 126)
    below = np.maximum(above - 1, 0)
    up, down = E4M3[above] - size, size - E4M3[below]
    code = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return (code | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)


def unpack(words):
    """uint4b8 words [.., k / 8] -> codes -8..7 [.., k]."""
    words = np.ascontiguousarray(words).view(np.uint32)
    nibbles = (words[..., None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 15
    return nibbles.reshape(*words.shape[:-1], -1).astype(np.int32) - 8


def pack(codes):
    """Codes -8..7 [.., k] -> uint4b8 words [.., k / 8]."""
    nibbles = (np.asarray(codes) + 8).astype(np.uint32).reshape(*np.shape(codes)[:-1], -1, 8)
    return np.bitwise_or.reduce(nibbles << np.arange(0, 32, 4, dtype=np.uint32), axis=-1).view(np.int32)


def random_matrix(rng, shape, group_size, k):
    """(words [.., k / 8], scales [.., groups] as bf16 bits) of random codes; `shape` has the leading dimensions."""
    codes = rng.integers(-8, 8, (*shape, k))
    groups = -(-k // group_size) if group_size else 1
    return pack(codes), to_bf16(rng.uniform(0.5, 2.0, (*shape, groups)) / (4.0 * np.sqrt(k)))


def aligned(array):
    """A copy that begins at a multiple of 64 bytes."""
    space = np.zeros(array.nbytes + 64, np.uint8)
    copy = space[-space.ctypes.data % 64:][:array.nbytes].view(array.dtype).reshape(array.shape)
    copy[:] = array
    return copy


def dequantised(words, scales, group_size):
    codes, values = unpack(words), from_bf16(scales)
    k = codes.shape[-1]
    return codes * np.repeat(values, group_size or k, axis=-1)[..., :k]


_DTYPES = {"F32": np.float32, "I32": np.int32, "BF16": np.uint16, "U8": np.uint8, "I8": np.int8}


def write_safetensors(path, tensors):
    """tensors: name -> (type name, array)."""
    header, offset = {}, 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())


def read_safetensors(path):
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[begin:end], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes src/kernels/cuda/ptx/wgmma_bf16.cuh: the bf16 wgmma with A from registers, for the widths in use.

usage: tools/generate_wgmma_bf16.py > src/kernels/cuda/ptx/wgmma_bf16.cuh
"""
import textwrap

KEYS = 64  # of a block: B of the scores, k contiguous
SUMS = (40, 72, 104, 136)  # dimensions and eight ones: B of the values, n contiguous

HEAD = '''// SPDX-License-Identifier: Apache-2.0
// wgmma m64nNk16, bf16 x bf16 -> fp32, A from registers, B by descriptor. Written by tools/generate_wgmma_bf16.py.
#pragma once

#include <cstdint>

namespace quadrille::kernels::cuda::ptx {

// Descriptor of B in chunks of 64-byte rows in 64-byte swizzle, 512-byte aligned: address / 16, bytes / 16 between
// chunks of 32 n (where n is contiguous; else ignored), 512 / 16 between groups of eight rows, swizzle mode 2.
__device__ __forceinline__ uint64_t chunk_descriptor(uint32_t shared, uint32_t chunk_bytes) {
  return uint64_t{2} << 62 | uint64_t{32} << 32 | uint64_t{chunk_bytes >> 4} << 16 | (shared & 0x3ffffu) >> 4;
}

// d = A B (+ d where `accumulate`); d[4j..4j+3]: rows g, g, g + 8, g + 8 and columns 8j + 2t, 8j + 2t + 1 twice.
// wgmma_rows: the k of a column are contiguous in B; wgmma_columns: the n of a k are.
template <int N>
__device__ __forceinline__ void wgmma_rows(float (&d)[N / 2], const uint32_t* a, uint64_t descriptor, int accumulate);
template <int N>
__device__ __forceinline__ void wgmma_columns(float (&d)[N / 2], const uint32_t* a, uint64_t descriptor,
                                              int accumulate);
'''


def wrap(parts, indent):
    return textwrap.fill(", ".join(parts), 112, initial_indent=indent, subsequent_indent=indent)


def one(name, n, transposed):
    count = n // 2
    rows = textwrap.wrap(", ".join(f"%{i}" for i in range(count)), 100)
    body = "\n".join(f'      "{row} "' for row in rows)
    outputs = wrap([f'"+f"(d[{i}])' for i in range(count)], "        ")
    return f'''
template <>
__device__ __forceinline__ void {name}<{n}>(float (&d)[{count}], const uint32_t* a, uint64_t descriptor,
                                            int accumulate) {{
  asm volatile(
      "{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{count + 5}, 0;\\n"
      "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{"
{body}
      "}}, {{%{count}, %{count + 1}, %{count + 2}, %{count + 3}}}, %{count + 4}, p, 1, 1, {transposed};\\n}}\\n"
      :
{outputs}
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor), "r"(accumulate));
}}'''


print(HEAD.rstrip())
print(one("wgmma_rows", KEYS, 0))
for width in SUMS:
    print(one("wgmma_columns", width, 1))
print("\n}  // namespace quadrille::kernels::cuda::ptx")

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes src/kernels/cuda/ptx/wgmma.cuh and wgmma_bf16.cuh: wgmma with A from registers, for the widths in use.

usage: tools/generate_wgmma.py e4m3 > src/kernels/cuda/ptx/wgmma.cuh
       tools/generate_wgmma.py bf16 > src/kernels/cuda/ptx/wgmma_bf16.cuh
"""
import sys
import textwrap

TOKENS = (8, 16, 32, 64, 96, 112, 128, 160)

KEYS = 64  # of a block of attention: B of its scores, k contiguous
SUMS = (40, 72, 104, 136)  # dimensions and eight ones: B of its values, n contiguous

E4M3 = '''// SPDX-License-Identifier: Apache-2.0
// wgmma m64nNk32, e4m3 x e4m3 -> fp32, A from registers, B by descriptor. Written by tools/generate_wgmma.py.
#pragma once

#include <cstdint>

namespace quadrille::kernels::cuda::ptx {

// Orders this thread's register writes before the wgmma that follow; pairs with nothing, it is a fence.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Returns when at most `Pending` committed groups are still in flight.
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
// Keeps the compiler from moving reads or writes of accumulators across a wait.
template <int Count>
__device__ __forceinline__ void pin(float (&d)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Descriptor of a K-major tile [rows][128 bytes] in 128-byte swizzle, 1024-byte aligned: address / 16, leading offset 1
// (ignored), stride offset 1024 / 16, swizzle mode 1. One k32 step further on is 2 more.
__device__ __forceinline__ uint64_t swizzled_descriptor(uint32_t shared) {
  return uint64_t{1} << 62 | uint64_t{64} << 32 | uint64_t{1} << 16 | (shared & 0x3ffffu) >> 4;
}

// d = A B (+ d where `accumulate`); d[4j..4j+3]: rows g, g, g + 8, g + 8 and tokens 8j + 2t, 8j + 2t + 1 twice.
template <int Tokens>
__device__ __forceinline__ void wgmma(float (&d)[Tokens / 2], const uint32_t* a, uint64_t descriptor, int accumulate);
'''

BF16 = '''// SPDX-License-Identifier: Apache-2.0
// wgmma m64nNk16, bf16 x bf16 -> fp32, A from registers, B by descriptor. Written by tools/generate_wgmma.py.
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


def one(name, width, shape, immediates):
    count = width // 2
    rows = textwrap.wrap(", ".join(f"%{i}" for i in range(count)), 100)
    body = "\n".join(f'      "{row} "' for row in rows)
    outputs = wrap([f'"+f"(d[{i}])' for i in range(count)], "        ")
    return f'''
template <>
__device__ __forceinline__ void {name}<{width}>(float (&d)[{count}], const uint32_t* a, uint64_t descriptor,
                                         int accumulate) {{
  asm volatile(
      "{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{count + 5}, 0;\\n"
      "wgmma.mma_async.sync.aligned.{shape} {{"
{body}
      "}}, {{%{count}, %{count + 1}, %{count + 2}, %{count + 3}}}, %{count + 4}, p, {immediates};\\n}}\\n"
      :
{outputs}
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor), "r"(accumulate));
}}'''


def main():
    if sys.argv[1:] == ["e4m3"]:
        print(E4M3.rstrip())
        for n in TOKENS:
            print(one("wgmma", n, f"m64n{n}k32.f32.e4m3.e4m3", "1, 1"))
    elif sys.argv[1:] == ["bf16"]:
        print(BF16.rstrip())
        print(one("wgmma_rows", KEYS, f"m64n{KEYS}k16.f32.bf16.bf16", "1, 1, 0"))
        for n in SUMS:
            print(one("wgmma_columns", n, f"m64n{n}k16.f32.bf16.bf16", "1, 1, 1"))
    else:
        sys.exit(__doc__)
    print("\n}  // namespace quadrille::kernels::cuda::ptx")


main()

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes src/kernels/cuda/ptx/wgmma.cuh: the e4m3 wgmma with A from registers, for the token tiles in use.

usage: tools/generate_wgmma.py > src/kernels/cuda/ptx/wgmma.cuh
"""
import textwrap

TOKENS = (8, 16, 32, 64, 96, 128)

HEAD = '''// SPDX-License-Identifier: Apache-2.0
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


def wrap(parts, indent):
    return textwrap.fill(", ".join(parts), 112, initial_indent=indent, subsequent_indent=indent)


def one(tokens):
    count = tokens // 2
    names = [f"%{i}" for i in range(count)]
    rows = textwrap.wrap(", ".join(names), 100)
    body = "\n".join(f'      "{row} "' for row in rows)
    outputs = wrap([f'"+f"(d[{i}])' for i in range(count)], "        ")
    return f'''
template <>
__device__ __forceinline__ void wgmma<{tokens}>(float (&d)[{count}], const uint32_t* a, uint64_t descriptor,
                                         int accumulate) {{
  asm volatile(
      "{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{count + 5}, 0;\\n"
      "wgmma.mma_async.sync.aligned.m64n{tokens}k32.f32.e4m3.e4m3 {{"
{body}
      "}}, {{%{count}, %{count + 1}, %{count + 2}, %{count + 3}}}, %{count + 4}, p, 1, 1;\\n}}\\n"
      :
{outputs}
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor), "r"(accumulate));
}}'''


print(HEAD.rstrip())
for n in TOKENS:
    print(one(n))
print("\n}  // namespace quadrille::kernels::cuda::ptx")

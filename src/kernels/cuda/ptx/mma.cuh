// SPDX-License-Identifier: Apache-2.0
// mma m16n8k16, bf16 x bf16 -> fp32, and what stands around it in the decoder's kernels: 16-byte asynchronous copies,
// bf16 pairs, the hardware's 2^x.
#pragma once

#include <cstdint>

namespace quadrille::kernels::cuda::ptx {

// d += A B. Lane = 4 g + t. a: rows g, g + 8, g, g + 8 at k 2t.. twice and 2t + 8.. twice; b: k 2t.., 2t + 8.. of
// column g; d: row g at columns 2t, 2t + 1, then row g + 8.
__device__ __forceinline__ void mma_bf16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Four 8x8 matrices of bf16 from shared memory: lane l gives the address of row l % 8 of matrix l / 8 and receives in
// r[i] columns 2 (l % 4), + 1 of row l / 4 of matrix i.
__device__ __forceinline__ void load_matrices(uint32_t address, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
// The same, transposed: rows 2 (l % 4), + 1 of column l / 4.
__device__ __forceinline__ void load_matrices_transposed(uint32_t address, uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Nearest even, NaN to 0x7FFF: numerics::bf16_from_f32 of both; `low` in the low half.
__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// 2^x: relative error at most 2^-22, 2^0 = 1, 2^-inf = 0; results below 2^-126 are 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 16 bytes, global -> shared; zeros where `exists` is false (nothing is read then).
__device__ __forceinline__ void copy16_async(uint32_t shared, const void* global, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(exists ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copies_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Returns when at most `Pending` of this thread's committed groups are still in flight.
template <int Pending>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

}  // namespace quadrille::kernels::cuda::ptx

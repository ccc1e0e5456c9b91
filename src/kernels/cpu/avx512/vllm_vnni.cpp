// SPDX-License-Identifier: Apache-2.0
// The `vllm` product of the avx512 table with VNNI: a product of pairs and its sum are one instruction. The driver
// takes this function where the processor has AVX512_VNNI; tokens are packed by the unit without it.
#include "kernels/cpu/avx512/simd.h"

#include "kernels/cpu/body/w4a8_vllm_share.h"

namespace quadrille::kernels::cpu {
namespace {

void vllm_gemm(const W4A8Gemm& gemm, const GemmShare& share) {
  const ExpertRows rows = expert_rows(gemm.rows, share.expert, Simd::kTileTokens);
  if (rows.split.rows != 0) vllm_share<Simd>(gemm, share, rows);
}

}  // namespace

constinit const VllmParts kAvx512VnniVllm{vllm_gemm};

}  // namespace quadrille::kernels::cpu

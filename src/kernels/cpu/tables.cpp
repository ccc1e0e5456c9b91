// SPDX-License-Identifier: Apache-2.0
// Fills the tables: each entry binds the driver to the parts of one unit.
#include "kernels/cpu/tables.h"

#include "kernels/cpu/cpuid.h"
#include "kernels/cpu/drive.h"

namespace quadrille::kernels::cpu {
namespace {

// A table entry: Drive over the parts of one unit.
template <const IsaParts& Parts, auto Drive>
struct Bound;
template <const IsaParts& Parts, typename Problem, void (*Drive)(const IsaParts&, const Problem&, const KernelContext&)>
struct Bound<Parts, Drive> {
  static void run(const Problem& problem, const KernelContext& context) { Drive(Parts, problem, context); }
};

template <const IsaParts& Parts>
constexpr KernelTable table_of(const char* name, const char* description, std::string (*unavailable_reason)(),
                               bool by_name_only = false) {
  return KernelTable{
      .name = name,
      .description = description,
      .supports_round_f32 = true,
      .by_name_only = by_name_only,
      .unavailable_reason = unavailable_reason,
      .num_calls = [] { return Parts.num_calls(); },
      .quantize_rows = Bound<Parts, drive_quantize_rows>::run,
      .w4a8_gemm = Bound<Parts, drive_w4a8_gemm>::run,
      .bf16_gemm = Bound<Parts, drive_bf16_gemm>::run,
      .gated_activation = Bound<Parts, drive_gated_activation>::run,
      .rms_norm = Bound<Parts, drive_rms_norm>::run,
      .rope = Bound<Parts, drive_rope>::run,
      .attention = Bound<Parts, drive_attention>::run,
      .router_logits = Bound<Parts, drive_router_logits>::run,
      .combine = Bound<Parts, drive_combine>::run,
      .add_residual = Bound<Parts, drive_add_residual>::run,
  };
}

std::string always_available() {
  return {};
}

}  // namespace

constinit const KernelTable kGenericTable =
    table_of<kGenericParts>("generic", "any x86-64 (SSE2), the CPU order", always_available);
constinit const KernelTable kAvx2Table =
    table_of<kAvx2Parts>("avx2", "AVX2 with FMA, the CPU order", avx2_unavailable_reason);
constinit const KernelTable kAvx512Table =
    table_of<kAvx512Parts>("avx512", "AVX-512 (F, BW, VL, DQ) with fp32 FMA, the CPU order", avx512_unavailable_reason);
constinit const KernelTable kAmxTable =
    table_of<kAmxParts>("amx", "AMX-BF16 tiles for W4A8 products of several rows, AVX-512 for the rest, the CPU order",
                        amx_unavailable_reason);
constinit const KernelTable kVdpbf16Table =
    table_of<kVdpbf16Parts>("vdpbf16", "AVX-512 with vdpbf16ps for the W4A8 product, an order of its own",
                            vdpbf16_unavailable_reason, /*by_name_only=*/true);

}  // namespace quadrille::kernels::cpu

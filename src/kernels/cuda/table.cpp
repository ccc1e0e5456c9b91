// SPDX-License-Identifier: Apache-2.0
// The table `cuda`.
#include "kernels/api/device_table.h"
#include "kernels/cuda/decoder_kernels.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/probe/probe_kernels.h"

namespace quadrille::kernels {
namespace {

const DeviceTable kCudaTable = {
    .name = "cuda",
    .prepare_w4 = cuda::prepare_w4,
    .plan_routes = cuda::plan_routes,
    .plan_masked = cuda::plan_masked,
    .router_logits = cuda::router_logits,
    .route_tokens = cuda::route_tokens,
    .route_and_plan = cuda::route_and_plan,
    .quantize_tokens = cuda::quantize_tokens,
    .quantize_listed = cuda::quantize_listed,
    .row_absmax = cuda::row_absmax,
    .round_to_bf16 = cuda::round_to_bf16,
    .w4a8_gemm = cuda::w4a8_gemm,
    .combine = cuda::combine,
    .combine_partial = cuda::combine_partial,
    .reduce_ranks = cuda::reduce_ranks,
    .embed = cuda::embed,
    .add_norm = cuda::add_norm,
    .norm_and_route = cuda::norm_and_route,
    .split_heads = cuda::split_heads,
    .attention = cuda::attention,
    .bf16_gemm = cuda::bf16_gemm,
    .greedy = cuda::greedy,
    .sample = cuda::sample,
    .probe_read = cuda::probe_read,
    .probe_products = cuda::probe_products,
    .choose_bf16_tile = cuda::choose_bf16_tile,
    .w4a8_configs = cuda::w4a8_configs,
    .choose_w4a8 = cuda::choose_w4a8,
};

}  // namespace

Result<const DeviceTable*> device_table() {
  return &kCudaTable;
}

}  // namespace quadrille::kernels

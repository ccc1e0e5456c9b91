// SPDX-License-Identifier: Apache-2.0
// What the folders around the MoE layer offer to the table (table.cpp). Contracts:
// kernels/api/device_decoder_problems.h.
#pragma once

#include "device/handles.h"
#include "kernels/api/device_decoder_problems.h"

namespace quadrille::kernels::cuda {

// decoder/
void embed(const DeviceEmbed& p, device::Stream stream);
void add_norm(const DeviceAddNorm& p, device::Stream stream);
void norm_and_route(const DeviceNormAndRoute& p, device::Stream stream);  // in moe/
void split_heads(const DeviceQkv& p, device::Stream stream);
// attention/
void attention(const DeviceAttention& p, device::Stream stream);
// bf16_gemm/
void bf16_gemm(const DeviceBf16Gemm& p, device::Stream stream);
int64_t choose_bf16_tile(int64_t num_experts, int64_t num_rows);
// sample/
void greedy(const DeviceGreedy& p, device::Stream stream);
void sample(const DeviceSample& p, device::Stream stream);

}  // namespace quadrille::kernels::cuda

// SPDX-License-Identifier: Apache-2.0
// From a problem to the compiled kernel of its arithmetic, group and tile.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/w4a8_gemm/launch.cuh"
#include "kernels/cuda/w4a8_gemm/split_launch.cuh"

namespace quadrille::kernels::cuda {
namespace {

void check_tile_list() {
  const auto configs = w4a8_configs();
  bool same = configs.size() == kNumTiles;
  for (int i = 0; same && i < kNumTiles; ++i) {
    same = configs[i].rows == kTileShapes[i].warpgroups * 64 && configs[i].tokens == kTileShapes[i].tokens &&
           configs[i].ctas_per_sm == kTileShapes[i].ctas_per_sm;
  }
  if (!same) throw LaunchFailure("w4a8_gemm: choose.cpp and config.h list different tiles");
}

GemmArguments arguments_of(const DeviceW4A8Gemm& p) {
  const layout::W4Hopper64 map{p.n, p.k, p.group_size, p.numerics == Numerics::kVllm};
  GemmArguments args{};
  args.list = p.list;
  args.weights = p.weights;
  args.expert_stride = p.expert_stride;
  args.channel_scale = p.channel_scale;
  args.bias = p.bias;
  args.act = p.act;
  args.act_pitch = p.act_pitch;
  args.act_scale = p.act_scale;
  args.block_scale = p.block_scale;
  args.block_max_m = p.block_max_m;
  args.out = p.out;
  args.out_pitch = p.out_pitch;
  args.n = static_cast<int32_t>(p.n);
  args.padded_n = static_cast<int32_t>(map.padded_n());
  args.row_blocks = static_cast<int32_t>(map.row_blocks());
  args.k_records = static_cast<int32_t>(map.k_records());
  args.parts = p.config == kWideTile ? ceil_div(kTileShapes[kWideTile].tokens, kTileShapes[kLargeTile].tokens) : 1;
  args.list_is_known = p.list.tiles == nullptr || p.list_is_older;
  args.output = p.output;
  args.activation = p.activation;
  return args;
}

template <Arithmetic A>
void launch_group(const DeviceW4A8Gemm& p, const GemmArguments& args, device::Stream stream) {
  const int tile = plain_tile(p.config);
  if (p.group_size == 32) return gemm_of<A, 32>(tile, p, args, stream);
  if (p.group_size == 64) return gemm_of<A, 64>(tile, p, args, stream);
  gemm_of<A, 128>(tile, p, args, stream);  // one scale a channel is stored once a record
}

void launch_shared_form(const DeviceW4A8Gemm& p, const GemmArguments& args, device::Stream stream) {
  if (p.group_size == 32) return split_gemm_of<32>(p.config, p, args, stream);
  if (p.group_size == 64) return split_gemm_of<64>(p.config, p, args, stream);
  split_gemm_of<128>(p.config, p, args, stream);
}

}  // namespace

int num_multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    check_launch("w4a8_gemm: multiprocessors");
  }
  return count;
}

int64_t num_items(const DeviceW4A8Gemm& p, const GemmArguments& args, int tokens, int blocks) {
  const int64_t tiles = p.list.tiles != nullptr ? p.list.max_tiles : ceil_div(p.list.num_rows, tokens);
  const int64_t items = tiles * ceil_div(args.row_blocks, blocks);
  if (items > 0x7fffffff - 65536) throw LaunchFailure("w4a8_gemm: more than 2^31 work items in one launch");
  return items;
}

void w4a8_gemm(const DeviceW4A8Gemm& p, device::Stream stream) {
  static const bool checked = (check_tile_list(), true);
  (void)checked;
  const GemmArguments args = arguments_of(p);
  if (p.x != nullptr || p.source_row != nullptr) return split_gemm_with_input(p, args, stream);
  if (p.block_scale != nullptr) return launch_group<Arithmetic::kBlock>(p, args, stream);
  if (p.numerics == Numerics::kVllm) return launch_group<Arithmetic::kVllm>(p, args, stream);
  if (p.config == kWideTile && p.group_size != 32 && p.group_size != 64) return launch_wide(p, args, stream);
  if (kTileShapes[p.config].k_ctas > 0) return launch_shared_form(p, args, stream);
  launch_group<Arithmetic::kExact>(p, args, stream);
}

}  // namespace quadrille::kernels::cuda

// SPDX-License-Identifier: Apache-2.0
// Checks an attention problem, decides how the blocks of single tokens are spread, and launches the kernels of the head
// dimension. None of these choices changes a bit of the result.
#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/attention/arguments.h"
#include "kernels/cuda/decoder_kernels.h"
#include "kernels/cuda/launch.h"

namespace quadrille::kernels::cuda {
namespace {

struct HeadKernels {
  int64_t padded_dim;
  void (*clusters)(const AttentionArguments&, device::Stream);  // null: makes_fresh_heads() is false
  void (*singles)(const AttentionArguments&, int64_t, device::Stream);
  void (*tiles)(const AttentionArguments&, device::Stream);
};
constexpr HeadKernels kHeadKernels[] = {
    {32, launch_cluster_singles<32>, launch_singles<32>, launch_tiles<32>},
    {64, launch_cluster_singles<64>, launch_singles<64>, launch_tiles<64>},
    {96, nullptr, launch_singles<96>, launch_tiles<96>},
    {128, launch_cluster_singles<128>, launch_singles<128>, launch_tiles<128>},
    {192, nullptr, launch_singles<192>, launch_tiles<192>},
    {256, nullptr, launch_singles<256>, launch_tiles<256>},
};

bool on_16_bytes(const void* memory) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0;
}

void check_problem(const DeviceAttention& p) {
  QD_CHECK(p.num_heads >= 1 && p.heads_per_kv >= 1 && p.pages.num_kv_heads >= 1, "heads of the attention");
  QD_CHECK(p.head_phase >= 0 && p.head_phase < p.heads_per_kv, "a first query head of the first KV head");
  QD_CHECK((p.head_phase + p.num_heads - 1) / p.heads_per_kv < p.pages.num_kv_heads, "a KV head for every query head");
  QD_CHECK(p.pages.head_dim % 8 == 0 && layout::padded_head_dim(p.pages.head_dim) != 0,
           "a head of a multiple of 8 dimensions, at most 256");
  QD_CHECK(p.scale > 0 && p.window >= 0, "a scale above 0 and a window");
  QD_CHECK(on_16_bytes(p.q) && on_16_bytes(p.out) && on_16_bytes(p.workspace), "rows on 16 bytes");
  QD_CHECK(reinterpret_cast<uintptr_t>(p.pages.data) % 16 == 0, "pages on 16 bytes");
  QD_CHECK(p.num_singles >= 0 && p.num_tiles >= 0, "tokens of the step");
  if (p.projection.qkv != nullptr) {
    QD_CHECK(p.num_tiles == 0 && p.singles == nullptr && p.projection.num_tokens == p.num_singles,
             "a projection of tokens that are all singles");
    QD_CHECK(p.projection.num_heads == p.num_heads && p.projection.q == p.q, "one row of query heads");
  }
  if (p.act == nullptr) return;
  QD_CHECK(p.num_tiles == 0 && p.counters != nullptr && p.act_scale != nullptr,
           "codes of singles alone, with counters");
  QD_CHECK(p.act_pitch >= p.num_heads * p.pages.head_dim && p.act_pitch % 16 == 0 && on_16_bytes(p.act),
           "a pitch that holds the codes, rows on 16 bytes");
}

int64_t num_sms() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    check_launch("attention: multiprocessors");
  }
  return count;
}

int64_t divided_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Whether a CTA has all blocks of its heads, because the CTAs of the tokens fill half of the multiprocessors.
bool has_whole_singles(const AttentionArguments& args) {
  return 2 * args.p.num_singles * args.head_pairs() > num_sms();
}
// Whether the CTAs of singles make the heads of the projection. 64 tokens of 1,088 positions, 4 KV heads of 128, on an
// H100: 51 us instead of 54. Where blocks are spread, each of several CTAs would (16 tokens: 17 us instead of 15.7).
bool makes_heads_alone(const AttentionArguments& args) {
  return makes_fresh_heads(args.p.projection) && has_whole_singles(args);
}

// Fills the spread of the singles; returns the warps of a CTA. One or two sequences of a usual context take one cluster
// of CTAs of four warps a KV head; with more, or much longer, CTAs of two warps are spread two a multiprocessor. Where
// the CTAs of a token alone fill half of the multiprocessors, spreading does not pay. 1,024 positions, 4 KV heads of
// 128, on an H100, in us behind split_heads, four warps beside two: 9 and 10 for 1 token, 18 and 11 for 4 (clusters of
// CTAs that fill a multiprocessor each do not all find room), 22 and 13 for 8, 18 and 18 for 16; for 32 not spread 33,
// spread 40; for 64 with three warps 56, two 59, four 63.
int64_t spread_singles(AttentionArguments* args, int64_t padded_dim) {
  constexpr int64_t kMostCluster = 8;  // what every device of this architecture can place
  constexpr int64_t kFewCtas = 8, kUsualBlocks = 64;
  const int64_t sms = num_sms();
  const int64_t ctas = args->p.num_singles * args->head_pairs();
  args->most_blocks = divided_up(args->p.max_context, kKeyBlock);
  const int64_t floats = args->p.num_singles * args->p.num_heads * args->most_blocks * partial_pitch(padded_dim);
  const bool has_room = args->p.workspace != nullptr && floats <= args->p.workspace_floats;
  const bool is_narrow = padded_dim <= 64;
  if (has_whole_singles(*args) || !has_room) return padded_dim > 128 ? 2 : is_narrow || ctas <= sms ? 4 : 3;
  const bool is_short = ctas <= kFewCtas && args->most_blocks <= kUsualBlocks;
  const int64_t warps = padded_dim > 128 ? 2 : is_narrow || is_short ? 4 : 2;
  args->least = 2;
  const int64_t even = std::max(kMostCluster, divided_up(args->most_blocks, 2 * warps));
  const int64_t wished =
      std::min({is_short ? kMostCluster : 2 * sms / ctas, even, divided_up(args->most_blocks, args->least)});
  while (args->cluster < kMostCluster && 2 * args->cluster <= wished) args->cluster *= 2;
  args->parts = args->p.counters == nullptr ? args->cluster : wished / args->cluster * args->cluster;
  return warps;
}

// Whether clusters of a KV head each make the heads themselves, and fold; fills how. Up to 32 KV heads of tokens in
// all, which leaves every cluster its multiprocessors, and contexts that one cluster is enough for. 1,088 positions, 4
// KV heads of 128, on an H100, in us: 1 token 3.7 (split_heads and the kernel of singles: 7.2), 2 tokens 4.5 (7.3), 4
// tokens 6.3 with clusters of 4, 9 of 8 (9.0), 8 tokens 8.2 with clusters of 2, 15 of 4 (11.2).
bool takes_clusters(AttentionArguments* args, int64_t padded_dim) {
  constexpr int64_t kMostCtas = 32, kUsualBlocks = 64, kMostSharedBytes = 227 << 10;
  const DeviceQkv& projection = args->p.projection;
  if (projection.qkv == nullptr || !makes_fresh_heads(projection)) return false;
  const int64_t ctas = args->p.num_singles * args->head_pairs();
  const int64_t most_blocks = divided_up(args->p.max_context, kKeyBlock);
  const int64_t cluster = ctas <= 8 ? 8 : ctas <= 16 ? 4 : 2;
  if (ctas == 0 || ctas > kMostCtas || most_blocks > kUsualBlocks || args->heads.heads_per_kv > kClusterRows)
    return false;
  if (cluster_shared_bytes(padded_dim, kClusterRows / cluster, most_blocks) > kMostSharedBytes) return false;
  args->most_blocks = most_blocks;
  args->cluster = cluster;
  return true;
}

}  // namespace

void attention(const DeviceAttention& p, device::Stream stream) {
  check_problem(p);
  const int64_t padded_dim = layout::padded_head_dim(p.pages.head_dim);
  const HeadKernels& kernels = *std::find_if(std::begin(kHeadKernels), std::end(kHeadKernels),
                                             [&](const HeadKernels& k) { return k.padded_dim == padded_dim; });
  AttentionArguments args;
  args.p = p;
  args.heads = {p.num_heads, p.heads_per_kv, p.head_phase};
  args.scale2 = p.scale * kLog2E;
  args.parts = 1;
  args.cluster = 1;
  args.least = 1;
  args.most_blocks = 0;
  args.rows = args.heads.packed() > 8 ? 16 : 8;
  QD_CHECK(std::max(p.num_singles, p.num_tiles) * args.head_pairs() < (int64_t{1} << 22), "a step of fewer tokens");
  if (takes_clusters(&args, padded_dim)) {
    kernels.clusters(args, stream);
    return;
  }
  if (p.projection.qkv != nullptr && !makes_heads_alone(args)) {
    split_heads(p.projection, stream);
    args.p.projection = {};
  }
  if (p.num_singles > 0) {
    const int64_t warps = spread_singles(&args, padded_dim);
    kernels.singles(args, warps, stream);
  }
  if (p.num_tiles > 0) kernels.tiles(args, stream);
}

}  // namespace quadrille::kernels::cuda

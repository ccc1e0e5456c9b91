// SPDX-License-Identifier: Apache-2.0
// The wide tile of the grouped product: 128 out features x 160 tokens a CTA, a pair of CTAs shares the tokens. A
// converted record serves 160 tokens, the most that two sums a token, two records and the addresses leave registers
// for.
#pragma once

#include "kernels/cuda/w4a8_gemm/config.h"

namespace quadrille::kernels::cuda {

// `exact`, groups of 128 (or one scale a channel): the sums of a record are promoted once.
struct WidePlan {
  static constexpr int kWarpgroups = 2;
  static constexpr int kCluster = 2;
  static constexpr int kHalf = 80;  // tokens that each CTA of the pair fetches; a shorter item multiplies these alone
  static constexpr int kTokens = 2 * kHalf;
  // A token tile of no more is multiplied in a loop of its own: the second tile of an expert with 272 rows. A third
  // loop spills.
  static constexpr int kFewTokens = 112;
  static constexpr int kStages = 5;
  static constexpr int kConsumerThreads = kWarpgroups * 128;
  static constexpr int kThreads = kConsumerThreads + 128;
  static constexpr int kRecordBytes = layout::kRecordCodeBytes + layout::kRecordRows * 2;
  static constexpr int kHalfBytes = kHalf * layout::kRecordK;
  static constexpr int kTokenBytes = 2 * kHalfBytes;
  // fp32 rows of one half on their way to memory, padded by 4 words, so that the eight rows and four token pairs of a
  // warp's store fall into 32 banks.
  static constexpr int kStagingPitch = layout::kRecordRows + 4;
  static constexpr int kStagingBytes = kHalf * kStagingPitch * 4;
  // Items that the producer has told of: it is at most kStages ahead of a consumer, which reads its item twice.
  static constexpr int kItems = 8;
  static_assert(kItems >= kStages + 2 && (kItems & (kItems - 1)) == 0);

  static constexpr int kTokensAt = 0;
  static constexpr int kWeightsAt = kStages * kTokenBytes;
  static constexpr int kStagingAt = kWeightsAt + kStages * kWarpgroups * kRecordBytes;
  // Factors of the rows: two items a warpgroup, as one is written before the readers of the other are done.
  static constexpr int kFactorsAt = kStagingAt + kWarpgroups * kStagingBytes;
  static constexpr int kItemsAt = kFactorsAt + kWarpgroups * 2 * kTokens * 4;
  static constexpr int kBarriersAt = kItemsAt + kItems * 16;
  static constexpr int kSharedBytes = kBarriersAt + kStages * 16;
  static_assert(kHalfBytes % 1024 == 0, "128-byte swizzle");
  static_assert(kSharedBytes + 1024 <= 232448, "more shared memory than a block can have");
};

}  // namespace quadrille::kernels::cuda

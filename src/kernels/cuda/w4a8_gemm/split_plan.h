// SPDX-License-Identifier: Apache-2.0
// The shared form of `exact` for short grids: four warpgroups of a CTA, and one, two or four CTAs of a cluster, share
// the records of 64 out features; group sums meet in shared memory where one thread an output makes the chain. Says
// what lies where in shared memory; split_kernel.cuh works on it, split_launch.cuh starts it.
#pragma once

#include "kernels/cuda/rowwise/quotient.h"
#include "kernels/cuda/w4a8_gemm/config.h"

namespace quadrille::kernels::cuda {

// What a product is given as its input (DeviceW4A8Gemm): codes of its rows, codes of tokens (resident.cuh), bf16
// rows.
enum class SplitInput { kCodes, kGathered, kRows };

// Where a CTA makes its codes itself.
struct MadeRows {
  uint16_t rows[kMostInputValues];
  uint32_t maxima[kMostInputRows][16];  // the largest magnitude, of each warp
  float scale[4][kMostInputRows];       // of the codes, a copy a warpgroup
  Divisor divisor[4][kMostInputRows];
};

// A stage is four neighbouring records, one a warpgroup. A pass is a stage of every CTA of the cluster.
template <int Tokens, int GroupK, SplitInput Input = SplitInput::kCodes>
struct SplitPlan {
  static constexpr SplitInput kInput = Input;
  static constexpr bool kMakesCodes = Input == SplitInput::kRows;
  static constexpr bool kVllm = false;
  static constexpr int kTokens = Tokens;
  static constexpr int kWarpgroups = 1;  // of out features, for WorkList
  static constexpr int kCluster = 1;
  static constexpr int kSharers = 4;
  static constexpr int kConsumerThreads = kSharers * 128;
  static constexpr int kThreads = kConsumerThreads + 32;
  static constexpr int kGroups = 128 / GroupK;
  static constexpr int kStepsPerGroup = 4 / kGroups;
  static constexpr int kBlocks = Tokens / 8;
  static constexpr int kSets = kBlocks * kGroups <= 4 ? kGroups : 4 / kBlocks;  // group sums in flight

  static constexpr int kRecordBytes = layout::kRecordCodeBytes + layout::kRecordRows * kGroups * 2;
  static constexpr int kStageBytes = kSharers * kRecordBytes;
  // Tokens come by loads, not by the copy engine: a quarter of its latency, and nobody issues boxes one by one. A round
  // is what all threads of a warpgroup load at once, 16 bytes each: two records of 8 tokens, one of 16.
  static constexpr int kRecordTokenBytes = Tokens * layout::kRecordK;
  static constexpr int kRound = Tokens == 8 ? 2 : 1;
  static constexpr int kVectors = kRound * kRecordTokenBytes / (128 * 16);
  static constexpr int kRoundBytes = kRound * kRecordTokenBytes;
  // One group's sums of a quarter (16 rows): [block of 8 tokens][token pair][row % 8] of (both tokens of row, of row +
  // 8), then the bf16 scales of the row pairs. A buffer holds one pass for the quarters of the CTA: with more CTAs
  // fewer quarters, and as many more records.
  static constexpr int kScalesAt = kBlocks * 512;
  static constexpr int kSlotBytes = kScalesAt + 32;
  static constexpr int kBufferBytes = 4 * kSharers * kGroups * kSlotBytes;

  static constexpr int kMadeBytes = kMakesCodes ? static_cast<int>(sizeof(MadeRows)) : 0;
  static constexpr int kFixedBytes = 2 * kBufferBytes + kSharers * 2 * kRoundBytes + kMadeBytes;
  // Two CTAs leave 56 registers a thread: enough for 8 tokens with one group sum, not for more.
  static constexpr int kCtas = Tokens == 8 && kGroups == 1 ? 2 : 1;
  static constexpr int kRoom = kCtas == 2 ? 233472 / 2 - 2048 - 256 : 231168;  // of a CTA, less barriers
  static constexpr int kStagesThatFit = (kRoom - kFixedBytes) / kStageBytes;
  static constexpr int kStages = kStagesThatFit < 4 ? kStagesThatFit : 4;
  static_assert(kStages >= (kMakesCodes ? 2 : 3));

  static constexpr int kTokensAt = 0;  // 128-byte swizzle: 1024-byte alignment
  static constexpr int kWeightsAt = kTokensAt + kSharers * 2 * kRoundBytes;
  static constexpr int kSlotsAt = kWeightsAt + kStages * kStageBytes;
  static constexpr int kMadeAt = kSlotsAt + 2 * kBufferBytes;
  static constexpr int kFullAt = kMadeAt + kMadeBytes;    // [stages] weights are there
  static constexpr int kEmptyAt = kFullAt + kStages * 8;  // [stages] all warps have read them
  static constexpr int kSumsAt = kEmptyAt + kStages * 8;  // [2][quarters here] sums of a pass are there
  static constexpr int kFreeAt = kSumsAt + 2 * 4 * 8;     // [2][4] whoever chains that quarter has read a pass
  static constexpr int kSharedBytes = kFreeAt + 2 * 4 * 8;
  static_assert(kStageBytes % 16 == 0 && kSlotBytes % 16 == 0 && kMadeAt % 16 == 0 && kFullAt % 8 == 0);
};

}  // namespace quadrille::kernels::cuda

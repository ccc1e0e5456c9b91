// SPDX-License-Identifier: Apache-2.0
// Attention on the device beside its definition in double: keys, values and queries are functions of (sequence, head,
// position, dimension), pages are shuffled, and what no token may read is NaN.
#pragma once

#include <cstdint>
#include <vector>

#include "device/device.h"
#include "device/device_memory.h"
#include "kernels/api/device_table.h"

namespace quadrille::testing {

struct AttentionShape {
  int64_t num_heads = 4;
  int64_t heads_per_kv = 2;
  int64_t head_phase = 0;
  int64_t head_dim = 64;
  int64_t window = 0;

  int64_t kv_heads() const { return (head_phase + num_heads - 1) / heads_per_kv + 1; }
  int64_t row() const { return num_heads * head_dim; }
  float scale() const;
};

struct QueryToken {
  int32_t sequence;
  int32_t position;  // -1: padding
};

// How a step's tokens are launched.
struct AttentionLaunch {
  int64_t tile_tokens = 0;  // 0: every token alone
  bool is_spread = false;   // tokens alone: with a workspace
  bool is_planned = false;  // plan_attention decides
  bool has_codes = false;   // every token alone: with the codes of the rows
  bool counts = true;       // spread: with counters, over several clusters
};

class AttentionCase {
 public:
  // contexts: positions of each sequence that have keys and values.
  AttentionCase(const AttentionShape& shape, const std::vector<int64_t>& contexts, device::Stream stream);

  // A launch that may be made again and again, and its memory.
  struct Prepared {
    PoolMemory memory;
    kernels::DeviceAttention p;
    int64_t num_tokens = 0;
  };
  void prepare(const std::vector<QueryToken>& tokens, const AttentionLaunch& launch, Prepared* prepared) const;
  void launch(const Prepared& prepared) const { table_.attention(prepared.p, stream_); }
  // The rows. Throws where a counter is not zero again, the codes are not those of quantize_tokens on the rows, or
  // memory around the outputs is harmed.
  std::vector<uint16_t> result(const Prepared& prepared) const;

  // [tokens, num_heads * head_dim]; every launch poisons its output first.
  std::vector<uint16_t> run(const std::vector<QueryToken>& tokens, const AttentionLaunch& launch);
  // "" or the first value of token `t` that is further from the definition than docs/kernels/decoder.md allows.
  std::string difference(const std::vector<QueryToken>& tokens, const std::vector<uint16_t>& found, int64_t t) const;
  // Milliseconds of a launch, the fastest of `rounds`.
  float time(const std::vector<QueryToken>& tokens, const AttentionLaunch& launch, int rounds);
  // Of one of many launches behind each other in a graph.
  float time_in_graph(const std::vector<QueryToken>& tokens, const AttentionLaunch& launch, int rounds);
  std::string harmed() const { return memory_.harmed(stream_); }

 private:
  kernels::DeviceAttention problem(const std::vector<QueryToken>& tokens, const AttentionLaunch& launch,
                                   Memory& memory) const;
  uint16_t query(const QueryToken& token, int64_t head, int64_t dim) const;

  AttentionShape shape_;
  std::vector<int64_t> contexts_;
  device::Stream stream_;
  const kernels::DeviceTable& table_;
  PoolMemory memory_;
  uint16_t* pages_ = nullptr;
  int32_t* page_table_ = nullptr;
  int64_t table_stride_ = 0;
  int64_t max_context_ = 0;
};

}  // namespace quadrille::testing

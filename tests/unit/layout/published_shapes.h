// SPDX-License-Identifier: Apache-2.0
// Hidden size and expert width of published mixture-of-experts models: what sharding must be able to cut.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace quadrille::test {

struct PublishedShape {
  const char* name;
  int64_t hidden;
  int64_t expert_width;
};

inline constexpr std::array<PublishedShape, 17> kPublishedShapes = {{
    {"Qwen3-30B-A3B", 2048, 768},
    {"Qwen3-235B-A22B", 4096, 1536},
    {"Qwen3-Next", 2048, 512},
    {"GLM-4.5-Air", 4096, 1408},
    {"GLM-4.6", 5120, 1536},
    {"MiniMax-M2", 3072, 1536},
    {"gpt-oss-120b", 2880, 2880},
    {"Nemotron-3-Nano", 2688, 1856},
    {"Nemotron-3-Super", 4096, 2688},
    {"Gemma-4-26B-A4B", 2816, 704},
    {"Qwen3.8-Flash-Next", 2560, 640},
    {"DeepSeek-V3", 7168, 2048},
    {"DeepSeek-R1", 7168, 2048},
    {"Kimi-K2", 7168, 2048},
    {"DeepSeek-V4-Flash", 4096, 2048},
    {"DeepSeek-V4-Pro", 7168, 3072},
    {"Mixtral-8x7B", 4096, 14336},
}};

// Groups that divide both dimensions, and 0: one scale a channel.
inline std::vector<int64_t> group_sizes(const PublishedShape& shape) {
  std::vector<int64_t> groups = {0};
  for (const int64_t group : {32, 64, 128}) {
    if (shape.hidden % group == 0 && shape.expert_width % group == 0) groups.push_back(group);
  }
  return groups;
}

}  // namespace quadrille::test

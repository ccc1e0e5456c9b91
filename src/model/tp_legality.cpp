// SPDX-License-Identifier: Apache-2.0
// Integers behind tp_legality.h: a size is legal when every rank gets at least one whole unit of everything that is
// split.
#include "model/tp_legality.h"

#include <numeric>

namespace quadrille::model {
namespace {

// Splits `units` over `ranks`.
void split(const std::string& name, int64_t units, int64_t ranks, const std::string& unit, TpVerdict* verdict) {
  if (units < ranks) {
    verdict->legal = verdict->even = false;
    verdict->reasons.push_back(fmt::format("{}: {} {} for {} ranks", name, units, unit, ranks));
  } else if (units % ranks != 0) {
    verdict->even = false;
    verdict->reasons.push_back(
        fmt::format("{}: uneven, {} or {} {} a rank", name, units / ranks, units / ranks + 1, unit));
  }
}

// A rank takes whole kv heads with all of their query heads; where there are fewer kv heads than ranks, each kv head is
// kept by several ranks, which share its query heads. The cut of o_proj's K follows and must lie on whole groups.
void split_attention(const ModelConfig& config, int64_t o_proj_group, TpVerdict* verdict) {
  const int64_t ranks = verdict->ranks;
  const int64_t kv_heads = config.num_kv_heads;
  const int64_t kv_head_width = config.q_width() / kv_heads;
  const int64_t group = o_proj_group == 0 ? 1 : o_proj_group;
  if (kv_heads >= ranks) {
    const int64_t unit = std::lcm(kv_head_width, group);
    const std::string text = fmt::format("units of {} kv heads{}", unit / kv_head_width,
                                         group > 1 ? fmt::format(" (o_proj groups of {})", group) : "");
    split("attention", (config.q_width() + unit - 1) / unit, ranks, text, verdict);
    return;
  }
  if (ranks % kv_heads != 0) {
    verdict->legal = verdict->even = false;
    verdict->reasons.push_back(
        fmt::format("attention: {} kv heads neither split over {} ranks nor repeat evenly", kv_heads, ranks));
    return;
  }
  verdict->reasons.push_back(fmt::format("attention: each kv head is kept by {} ranks", ranks / kv_heads));
  const int64_t unit = std::lcm(config.head_dim, group);
  if (kv_head_width % unit != 0) {
    verdict->legal = verdict->even = false;
    verdict->reasons.push_back(
        fmt::format("attention: o_proj groups of {} span the query heads of two kv heads", group));
    return;
  }
  split("attention", kv_head_width / unit, ranks / kv_heads,
        fmt::format("units of {} query heads a kv head", unit / config.head_dim), verdict);
}

void split_matrix(const RowParallelMatrix& matrix, TpVerdict* verdict) {
  constexpr int64_t kPackedWord = 8;
  const bool grouped = matrix.group_size != 0;
  const int64_t unit = grouped ? std::lcm(matrix.group_size, kPackedWord) : kPackedWord;
  // A last unit may be shorter: it is one all the same.
  split(fmt::format("{} (K {})", matrix.name, matrix.k), (matrix.k + unit - 1) / unit, verdict->ranks,
        fmt::format("{} of {}", grouped ? "groups" : "words", unit), verdict);
}

}  // namespace

std::vector<TpVerdict> tp_verdicts(const ModelConfig& config, int64_t o_proj_group,
                                   const std::vector<RowParallelMatrix>& matrices, int max_ranks) {
  std::vector<TpVerdict> verdicts;
  for (int ranks = 1; ranks <= max_ranks; ++ranks) {
    TpVerdict verdict;
    verdict.ranks = ranks;
    if (ranks > 1) {
      split_attention(config, o_proj_group, &verdict);
      for (const RowParallelMatrix& matrix : matrices) split_matrix(matrix, &verdict);
    }
    verdicts.push_back(std::move(verdict));
  }
  return verdicts;
}

}  // namespace quadrille::model

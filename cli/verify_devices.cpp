// SPDX-License-Identifier: Apache-2.0
#include "cli/verify_devices.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cli/json_output.h"
#include "cli/load_model.h"
#include "cli/rank_grid.h"
#include "cli/signals.h"

namespace quadrille::cli {
namespace {

constexpr int64_t kBatch = 64;

struct Rows {
  int64_t width = 0;
  std::vector<float> values;
  const float* row(size_t r) const { return values.data() + r * static_cast<size_t>(width); }
};

// Logits of every position.
Result<Rows> logits_of(model::Forward& model, const std::vector<int32_t>& ids) {
  std::vector<int32_t> all(ids.size());
  std::iota(all.begin(), all.end(), 0);
  QD_TRY(std::vector<float> values, logits_behind(model, ids, all));
  return Rows{model.vocab_size(), std::move(values)};
}

double largest_difference(const Rows& a, const Rows& b, size_t begin, size_t end) {
  double most = 0;
  for (size_t i = begin * static_cast<size_t>(a.width); i < end * static_cast<size_t>(a.width); ++i) {
    most = std::max(most, std::abs(static_cast<double>(a.values[i]) - b.values[i]));
  }
  return most;
}

double top_margin(const float* row, int64_t width) {
  float first = -INFINITY, second = -INFINITY;
  for (int64_t i = 0; i < width; ++i) {
    second = std::max(second, std::min(first, row[i]));
    first = std::max(first, row[i]);
  }
  return static_cast<double>(first) - second;
}

// What a greedy step takes of two tokens: the larger logit, of equal ones the smaller token.
bool prefers(const float* row, int32_t token, int32_t other) {
  return row[token] > row[other] || (row[token] == row[other] && token < other);
}

struct Side {
  std::string device;
  LoadedModel loaded;
  Texts texts;
  int64_t right = -1;
};

struct Comparison {
  int64_t count = 0, equal = 0;
  std::vector<DeviceDifference> different;
  int64_t unexplained() const {
    return std::count_if(different.begin(), different.end(), [](const auto& d) { return !d.is_explained(); });
  }
};

Result<Side> answer_on(Console& console, const VerifyOptions& options, const std::string& device,
                       const Subject& subject) {
  Side side;
  side.device = device;
  ModelOptions model = options.model;
  model.device = device;
  if (model.on_gpu()) model.kernels.clear();
  if (!model.on_gpu()) model.gpu_memory.clear();
  QD_TRY(const int64_t positions, cache_positions(model.folder, kBatch, std::max<int64_t>(subject.longest(), 64)));
  QD_TRY(side.loaded, load_model(console, model, positions));
  QD_TRY(side.texts, answer_greedily(*side.loaded.model, subject.streams(), subject.requests, kBatch, nullptr));
  if (interrupted()) return interrupted_error("verify");
  if (!subject.problems.empty()) side.right = count_right(subject.problems, side.texts);
  return side;
}

Result<Comparison> compare(const Side& a, const Side& b, const Subject& subject) {
  Comparison found;
  found.count = static_cast<int64_t>(subject.requests.size());
  for (size_t i = 0; i < subject.requests.size(); ++i) {
    if (a.texts.ids[i] == b.texts.ids[i]) {
      ++found.equal;
      continue;
    }
    QD_TRY(DeviceDifference difference,
           explain_devices(*a.loaded.model, *b.loaded.model, subject.requests[i], a.texts.ids[i], b.texts.ids[i]));
    difference.prompt = static_cast<int64_t>(i);
    found.different.push_back(difference);
  }
  return found;
}

void print_comparison(Console& console, const VerifyOptions& options, const Side& a, const Side& b,
                      const Comparison& found) {
  console.print("{}: {} against {} ({}; {})\n\n", options.model.folder, a.device, b.device, settings_text(a.loaded),
                settings_text(b.loaded));
  console.print("{} of {} texts equal", found.equal, found.count);
  if (a.right >= 0) console.print("; {} right on {}, {} on {}", a.right, a.device, b.right, b.device);
  console.print("\n");
  for (const DeviceDifference& d : found.different) {
    console.print(
        "  text {}, step {}: token {} on {}, {} on {}; margins {:.4f} and {:.4f} (of the two largest {:.4f} and "
        "{:.4f}); logits differ by up to {:.4f} there, {:.4f} before: {}\n",
        d.prompt, d.step, d.token[0], a.device, d.token[1], b.device, d.margin[0], d.margin[1], d.top_margin[0],
        d.top_margin[1], d.difference, d.difference_before, d.is_explained() ? "explained" : "NOT EXPLAINED");
    for (int side = 0; side < 2; ++side) {
      if (d.chooses_again[side]) continue;
      console.print("    {} does not choose its token again when it is asked with the whole text at once\n",
                    side == 0 ? a.device : b.device);
    }
  }
  console.print("\n{}\n", found.unexplained() == 0 ? "explained" : "DIFFERENT");
}

nlohmann::json comparison_json(const VerifyOptions& options, const Side& a, const Side& b, const Comparison& found) {
  nlohmann::json texts = nlohmann::json::array();
  for (const DeviceDifference& d : found.different) {
    texts.push_back({{"text", d.prompt},
                     {"step", d.step},
                     {"tokens", d.token},
                     {"margins", d.margin},
                     {"margins_of_the_two_largest", d.top_margin},
                     {"largest_logit_difference", d.difference},
                     {"largest_logit_difference_before", d.difference_before},
                     {"chooses_again", d.chooses_again},
                     {"explained", d.is_explained()}});
  }
  const auto side = [&](const Side& s) {
    return nlohmann::json{{"device", s.device}, {"kernels", s.loaded.model->backend()}, {"right", s.right}};
  };
  return {{"model", options.model.folder}, {"sides", {side(a), side(b)}},          {"texts", found.count},
          {"equal", found.equal},          {"not_explained", found.unexplained()}, {"different", texts}};
}

}  // namespace

Result<DeviceDifference> explain_devices(model::Forward& first, model::Forward& second, const engine::Request& request,
                                         const std::vector<int32_t>& first_ids,
                                         const std::vector<int32_t>& second_ids) {
  const auto [step, prefix] = find_parting(request, first_ids, second_ids);
  QD_TRY(const Rows a, logits_of(first, prefix));
  QD_TRY(const Rows b, logits_of(second, prefix));
  const size_t last = prefix.size() - 1;
  const float* rows[2] = {a.row(last), b.row(last)};
  DeviceDifference found;
  found.step = static_cast<int64_t>(step);
  found.token[0] = token_at(first_ids, step, request, {rows[0], static_cast<size_t>(a.width)});
  found.token[1] = token_at(second_ids, step, request, {rows[1], static_cast<size_t>(b.width)});
  for (int side = 0; side < 2; ++side) {
    const int32_t own = found.token[side], other = found.token[1 - side];
    found.margin[side] = static_cast<double>(rows[side][own]) - rows[side][other];
    found.top_margin[side] = top_margin(rows[side], a.width);
    found.chooses_again[side] = prefers(rows[side], own, other);
  }
  found.difference = largest_difference(a, b, last, last + 1);
  found.difference_before = largest_difference(a, b, 0, last);
  return found;
}

Status check_against(const VerifyOptions& options) {
  if (options.against == options.model.device) {
    throw CLI::ValidationError("--against",
                               fmt::format("is the device of --device, {}: name another one", options.against));
  }
  if (num_ranks(options.model) > 1 || !options.other.empty()) {
    throw CLI::ValidationError("--against",
                               "compares one rank on each of two devices: leave out --tp, --ep and "
                               "--other, or --against");
  }
  return {};
}

Status verify_devices(Console& console, const VerifyOptions& options) {
  QD_TRY(const model::ModelConfig config, model::read_model_config(options.model.folder));
  const Sequences sequences = built_in_sequences(config.vocab_size, config.max_positions - 1, options.model.seed + 1);
  QD_TRY(const Subject subject, make_subject(options, config, sequences));
  QD_TRY(const Side a, answer_on(console, options, options.model.device, subject));
  QD_TRY(const Side b, answer_on(console, options, options.against, subject));
  QD_TRY(const Comparison found, compare(a, b, subject));
  if (options.as_json) {
    QD_TRY_STATUS(write_json(console, "-", comparison_json(options, a, b, found)));
  } else {
    print_comparison(console, options, a, b, found);
  }
  if (found.unexplained() == 0) return {};
  return make_error(ErrorCode::kInvalidData, "{}: {} texts of {} and {} differ by more than logits do elsewhere",
                    options.model.folder, found.unexplained(), a.device, b.device);
}

}  // namespace quadrille::cli

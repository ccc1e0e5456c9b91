// SPDX-License-Identifier: Apache-2.0
// An observer that walks along the trace. Column-parallel outputs and codes, scales, routes: the bits of one rank, in
// the columns that this rank holds. Sums over ranks: within the bound that the trace carries.
#include "cli/verify_layers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "numerics/fp8_e4m3.h"

namespace quadrille::cli {
namespace {

using model::Module;

constexpr size_t kMostDifferences = 20;

// Which columns of the whole the columns of a part are.
struct Columns {
  struct Piece {
    int64_t begin, end;  // of the part
    int64_t whole;       // column of `begin`
  };
  std::vector<Piece> pieces;
  int64_t width = 0;    // of the part
  bool padded = false;  // columns outside of the pieces are zeros

  static Columns all(int64_t width) { return {{{0, width, 0}}, width, false}; }
  static Columns range(layout::Range held) { return {{{0, held.size(), held.begin}}, held.size(), false}; }
};

const char* value_form(const std::string& stage) {
  if (stage == "a" || stage == "a2") return "input codes";
  if (stage == "a_scale" || stage == "a2_scale") return "input scale";
  if (stage == "a1" || stage == "a1_scale") return "input";
  if (stage == "x") return "input";
  return "output";
}

class Comparer final : public model::StepObserver {
 public:
  Comparer(const std::vector<TraceRecord>& trace, const Sequences& sequences, const RankGroups& ranks,
           const std::vector<layout::ModelShard>& shards)
      : trace_(trace), sequences_(sequences), ranks_(ranks), shards_(shards) {}

  bool wants_stages() const override { return true; }

  void stage(int64_t layer, Module module, const moe::Stage& stage) override {
    const TraceRecord* record = next(layer, module, stage.name);
    if (record == nullptr) return;
    const int64_t width = stage.shape.size() > 1 ? stage.shape[1] : 1;
    if (record->stage == "expert_first_token_offset") {
      const auto* offsets = record->as<int64_t>();
      experts_.assign(offsets, offsets + record->rows);
    }
    if (record->stage == "out") return;  // update() compares it
    if (record->stage == "gemm2_out" && stage.shape[0] == record->rows) {
      return compare_partial(*record, static_cast<const float*>(stage.data));
    }
    const Columns columns = columns_of(*record, width);
    switch (stage.type) {
      case moe::StageType::kE4M3:
        return compare<uint8_t>(*record, static_cast<const uint8_t*>(stage.data), stage.shape[0], columns);
      case moe::StageType::kI64:
        return compare<int64_t>(*record, static_cast<const int64_t*>(stage.data), stage.shape[0], columns);
      case moe::StageType::kI32:
        return compare<int32_t>(*record, static_cast<const int32_t*>(stage.data), stage.shape[0], columns);
      default:
        return compare<float>(*record, static_cast<const float*>(stage.data), stage.shape[0], columns);
    }
  }

  void router(int64_t layer, const float* logits, const int32_t* ids, const float* weights, int64_t num_tokens,
              int64_t num_experts, int64_t top_k) override {
    const auto* record = next(layer, Module::kExperts, "router_logits");
    if (record != nullptr) compare<float>(*record, logits, num_tokens, Columns::all(num_experts));
    record = next(layer, Module::kExperts, "router_ids");
    if (record != nullptr) compare<int32_t>(*record, ids, num_tokens, Columns::all(top_k));
    record = next(layer, Module::kExperts, "router_weights");
    if (record != nullptr) compare<float>(*record, weights, num_tokens, Columns::all(top_k));
  }

  void update(int64_t layer, Module module, float* y, int64_t num_tokens, int64_t width) override {
    const TraceRecord* record = next(layer, module, "update");
    if (record == nullptr) return;
    if (record->bound.empty()) {
      compare<float>(*record, y, num_tokens, Columns::all(width));
    } else {
      compare_sum(*record, y);
    }
    std::memcpy(y, record->data.data(), record->data.size());
  }

  void logits(const float* x, int64_t rows, int64_t width) {
    const TraceRecord* record = next(-1, Module::kFeedForward, "logits");
    if (record != nullptr) compare<float>(*record, x, rows, Columns::all(width));
  }

  LayerReport report;
  Status failed;  // of a collective, or steps that do not fit the trace

 private:
  const layout::LayerShard& shard(int64_t layer) const {
    return shards_[static_cast<size_t>(ranks_.tensor.rank())].layers[static_cast<size_t>(layer)];
  }
  const layout::MlpShard& mlp(const TraceRecord& record) const {
    const layout::LayerShard& held = shard(record.layer);
    if (record.module == Module::kExperts) return held.experts;
    return record.module == Module::kShared ? held.shared : held.dense;
  }

  static bool is_inside_moe(const TraceRecord& record) {
    return record.module == Module::kShared ||
           (record.module == Module::kExperts && !record.stage.starts_with("router"));
  }

  // The record of what is computed now; null once both sides no longer do the same.
  const TraceRecord* next(int64_t layer, Module module, const char* stage) {
    if (!failed) return nullptr;
    while (ranks_.has_expert_ranks() && at_ < trace_.size() && is_inside_moe(trace_[at_])) ++at_;
    if (at_ < trace_.size()) {
      const TraceRecord& record = trace_[at_++];
      if (record.layer == layer && record.module == module && record.stage == stage) return &record;
    }
    failed = make_error(ErrorCode::kInvalidData,
                        "the ranks compute '{}' of layer {} where one rank does not: the two models have other layers "
                        "or formats",
                        stage, layer);
    return nullptr;
  }

  Columns columns_of(const TraceRecord& record, int64_t width) const {
    if (shards_.empty()) return Columns::all(width);
    const std::string& stage = record.stage;
    if (record.module == Module::kAttention) {
      const layout::AttentionShard& held = shard(record.layer).attention;
      if (stage == "q") return Columns::range(held.q_rows);
      if (stage == "k" || stage == "v") return Columns::range(held.kv_rows);
      if (stage == "x") return Columns::range({held.o.k_begin, held.o.k_end});
      if (stage == "a") return codes(held.o);
      return Columns::all(width);
    }
    if (stage == "a2") return codes(mlp(record).down);
    if (stage == "act") return Columns::range(mlp(record).columns);
    if (stage != "gemm1_out") return Columns::all(width);
    const layout::Range held = mlp(record).columns;
    if (width == held.size()) return Columns::range(held);
    const int64_t up = record.width / 2;
    return {{{0, held.size(), held.begin}, {held.size(), 2 * held.size(), up + held.begin}}, width, false};
  }
  static Columns codes(const layout::KShard& held) {
    return {{{held.k_offset(), held.k_offset() + held.held(), held.k_begin}}, held.k(), true};
  }

  template <typename T>
  static std::string value_text(T value) {
    if constexpr (std::is_same_v<T, uint8_t>) {
      return fmt::format("0x{:02x} ({})", value, numerics::e4m3_to_f32(value));
    } else if constexpr (std::is_same_v<T, float>) {
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      return fmt::format("{} (0x{:08x})", value, bits);
    } else {
      return fmt::format("{}", value);
    }
  }

  template <typename T>
  void compare(const TraceRecord& record, const T* part, int64_t rows, const Columns& columns) {
    const T* whole = record.as<T>();
    ++report.tensors;
    std::optional<Difference> first;
    if (rows != record.rows) {
      add(difference(record, 0, 0, fmt::format("{} rows", record.rows), fmt::format("{} rows", rows),
                     ranks_.all.rank()));
      return;
    }
    const auto differs = [&](int64_t r, int64_t whole_column, T expected, T found) {
      if (std::memcmp(&expected, &found, sizeof(T)) == 0) return;
      if (!first)
        first = difference(record, r, whole_column, value_text(expected), value_text(found), ranks_.all.rank());
      ++first->count;
    };
    for (int64_t r = 0; r < rows; ++r) {
      int64_t seen = 0;  // columns of the part up to here
      for (const Columns::Piece& piece : columns.pieces) {
        for (int64_t c = seen; columns.padded && c < piece.begin; ++c) differs(r, -1, T{}, part[r * columns.width + c]);
        for (int64_t c = piece.begin; c < piece.end; ++c) {
          const int64_t at = piece.whole + c - piece.begin;
          differs(r, at, whole[r * record.width + at], part[r * columns.width + c]);
        }
        seen = piece.end;
      }
      for (int64_t c = seen; columns.padded && c < columns.width; ++c) differs(r, -1, T{}, part[r * columns.width + c]);
    }
    report.values += rows * columns.width;
    if (first) add(std::move(*first));
  }

  // Partial rows: their sum over the ranks.
  void compare_partial(const TraceRecord& record, const float* rows) {
    std::vector<float> sum(rows, rows + record.rows * record.width);
    if (!shards_.empty() && !sum.empty()) {
      if (Status done = ranks_.tensor.all_reduce_sum(sum); !done) {
        failed = done;
        return;
      }
    }
    compare_sum(record, sum.data());
  }

  // The same on every rank: rank 0 tells.
  void compare_sum(const TraceRecord& record, const float* found) {
    ++report.tensors;
    const float* expected = record.as<float>();
    std::optional<Difference> first;
    const auto count = static_cast<size_t>(record.rows * record.width);
    for (size_t i = 0; i < count; ++i) {
      const double distance = std::abs(static_cast<double>(found[i]) - expected[i]);
      const double bound = record.bound[i];
      if (distance == 0) continue;
      if (distance <= bound) {
        report.largest_share = std::max(report.largest_share, distance / bound);
        continue;
      }
      if (!first) {
        const auto row = static_cast<int64_t>(i) / record.width, column = static_cast<int64_t>(i) % record.width;
        first = difference(record, row, column, value_text(expected[i]), value_text(found[i]), -1);
        first->bound = bound;
      }
      ++first->count;
    }
    report.sums += record.rows * record.width;
    if (first && ranks_.all.rank() == 0) add(std::move(*first));
  }

  void add(Difference difference) {
    ++report.differing_tensors;
    if (report.found.size() < kMostDifferences) report.found.push_back(std::move(difference));
  }

  Difference difference(const TraceRecord& record, int64_t row, int64_t column, std::string expected, std::string found,
                        int rank) const {
    Difference d;
    d.record = &record - trace_.data();
    d.step = step_name(sequences_, record.step);
    d.layer = record.layer;
    d.module = module_name(record, row, column);
    d.what = what_of(record, column);
    d.row = row;
    d.column = column;
    d.expected = std::move(expected);
    d.found = std::move(found);
    d.rank = record.stage == "logits" ? rank_of_token(column) : rank;
    return d;
  }

  static std::string what_of(const TraceRecord& record, int64_t column) {
    if (column < 0) return "padding of the input codes";
    if (record.stage == "router_logits") return "logits";
    if (record.stage == "router_ids") return "chosen experts";
    if (record.stage == "router_weights") return "weights";
    if (record.stage == "act") return "input before quantisation";
    return value_form(record.stage);
  }

  int rank_of_token(int64_t token) const {
    for (const layout::ModelShard& held : shards_) {
      const bool holds = token >= held.vocabulary.begin && token < held.vocabulary.end;
      if (holds) return ranks_.all.rank() - ranks_.tensor.rank() + held.rank;
    }
    return ranks_.all.rank();
  }

  std::string module_name(const TraceRecord& record, int64_t row, int64_t column) const {
    const std::string& stage = record.stage;
    if (stage == "logits") return "lm_head";
    if (record.module == Module::kEmbedding) return "embed_tokens";
    if (record.module == Module::kFeedForward) return "mlp";
    if (record.module == Module::kAttention) {
      if (stage == "q" || stage == "k" || stage == "v") return "self_attn." + stage + "_proj";
      return "self_attn.o_proj";
    }
    if (stage.starts_with("router")) return "mlp.gate";
    std::string name = "mlp.";
    if (record.module == Module::kShared) name += "shared_expert.";
    if (record.module == Module::kExperts) name += "experts." + expert_of(stage, row);
    if (stage == "gemm1_out") return name + (column < record.width / 2 ? "gate_proj" : "up_proj");
    return name + (stage.starts_with("a1") ? "gate_proj" : "down_proj");
  }

  std::string expert_of(const std::string& stage, int64_t slot) const {
    const bool has_slots = stage == "gemm1_out" || stage == "act" || stage.starts_with("a2") || stage == "gemm2_out";
    if (!has_slots || experts_.empty()) return "";
    const auto behind = std::upper_bound(experts_.begin(), experts_.end(), slot);
    return fmt::format("{}.", behind - experts_.begin() - 1);
  }

  const std::vector<TraceRecord>& trace_;
  const Sequences& sequences_;
  RankGroups ranks_;
  const std::vector<layout::ModelShard>& shards_;
  size_t at_ = 0;
  std::vector<int64_t> experts_;  // first slot of each expert, of the layer that runs
};

nlohmann::json to_json(const LayerReport& report) {
  nlohmann::json json = {{"tensors", report.differing_tensors}, {"found", nlohmann::json::array()}};
  for (const Difference& d : report.found) {
    json["found"].push_back(
        {d.record, d.step, d.layer, d.module, d.what, d.row, d.column, d.expected, d.found, d.rank, d.count, d.bound});
  }
  return json;
}

void take_json(const std::string& text, LayerReport* report) {
  const nlohmann::json json = nlohmann::json::parse(text);
  report->differing_tensors += json["tensors"].get<int64_t>();
  for (const nlohmann::json& j : json["found"]) {
    report->found.push_back({j[0], j[1], j[2], j[3], j[4], j[5], j[6], j[7], j[8], j[9], j[10], j[11]});
  }
}

}  // namespace

std::string Difference::text() const {
  const std::string place = layer < 0 ? module : fmt::format("layer {}, {}", layer, module);
  const std::string holder = rank < 0 ? "the sum over the ranks" : fmt::format("rank {}", rank);
  const std::string column_text = column < 0 ? "" : fmt::format(", column {}", column);
  std::string line = fmt::format("{}: {}: row {}{}: one rank has {}, {} has {}", place, what, row, column_text,
                                 expected, holder, found);
  if (bound > 0) line += fmt::format("; they may differ by {:.3g}", bound);
  return line + fmt::format(" ({}; {} values of this tensor differ)", step, count);
}

Result<LayerReport> compare_layers(model::AnyModel& model, const RankGroups& ranks,
                                   const std::vector<TraceRecord>& trace, const Sequences& sequences) {
  Comparer comparer(trace, sequences, ranks, model.shards());
  model.set_observer(&comparer);
  const Status done =
      run_steps(model, sequences, &ranks.all, {}, [&](int32_t, std::span<const float> logits, int64_t rows) {
        comparer.logits(logits.data(), rows, static_cast<int64_t>(logits.size()) / rows);
      });
  model.set_observer(nullptr);
  if (!done) return done.error();
  QD_TRY_STATUS(comparer.failed);
  LayerReport report = comparer.report;
  QD_TRY(const std::vector<std::string> texts, gather_texts(ranks.all, to_json(report).dump()));
  report.found.clear();
  report.differing_tensors = 0;
  for (const std::string& text : texts) take_json(text, &report);
  std::stable_sort(report.found.begin(), report.found.end(),
                   [](const Difference& a, const Difference& b) { return a.record < b.record; });
  if (report.found.size() > kMostDifferences) report.found.resize(kMostDifferences);
  return report;
}

}  // namespace quadrille::cli

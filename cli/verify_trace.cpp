// SPDX-License-Identifier: Apache-2.0
#include "cli/verify_trace.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "cli/ranks.h"
#include "cli/signals.h"

namespace quadrille::cli {
namespace {

using model::Module;

class Recorder final : public model::StepObserver {
 public:
  explicit Recorder(const SumRules& rules) : rules_(rules), bounds_(rules) {}
  void begin(int32_t step) { step_ = step; }
  bool wants_stages() const override { return true; }

  void stage(int64_t layer, Module module, const moe::Stage& stage) override {
    bounds_.see(module, stage);
    const int64_t width = stage.shape.size() > 1 ? stage.shape[1] : 1;
    int64_t bytes = 4;
    if (stage.type == moe::StageType::kE4M3) bytes = 1;
    if (stage.type == moe::StageType::kI64) bytes = 8;
    TraceRecord& record = add(layer, module, stage.name, stage.shape[0], width, stage.data, bytes);
    if (record.stage == "gemm2_out") record.bound = bounds_.partial_rows(module);
  }
  void router(int64_t layer, const float* logits, const int32_t* ids, const float* weights, int64_t num_tokens,
              int64_t num_experts, int64_t top_k) override {
    bounds_.see_routes(weights, num_tokens, top_k);
    add(layer, Module::kExperts, "router_logits", num_tokens, num_experts, logits, 4);
    add(layer, Module::kExperts, "router_ids", num_tokens, top_k, ids, 4);
    add(layer, Module::kExperts, "router_weights", num_tokens, top_k, weights, 4);
  }
  void update(int64_t layer, Module module, float* y, int64_t num_tokens, int64_t width) override {
    TraceRecord& record = add(layer, module, "update", num_tokens, width, y, 4);
    if (module != Module::kEmbedding && rules_.ranks > 1) record.bound = bounds_.update(module, y, num_tokens, width);
    if (module == Module::kFeedForward) bounds_ = SumBounds(rules_);
  }
  TraceRecord& add(int64_t layer, Module module, const char* stage, int64_t rows, int64_t width, const void* data,
                   int64_t bytes) {
    TraceRecord& record = records_.emplace_back();
    record.step = step_;
    record.layer = static_cast<int32_t>(layer);
    record.module = module;
    record.stage = stage;
    record.rows = rows;
    record.width = width;
    const auto* from = static_cast<const std::byte*>(data);
    record.data.assign(from, from + rows * width * bytes);
    return record;
  }
  std::vector<TraceRecord> take() { return std::move(records_); }

 private:
  SumRules rules_;
  SumBounds bounds_;
  int32_t step_ = 0;
  std::vector<TraceRecord> records_;
};

void put(std::vector<std::byte>* out, const void* data, size_t bytes) {
  const auto* from = static_cast<const std::byte*>(data);
  out->insert(out->end(), from, from + bytes);
}
void put_number(std::vector<std::byte>* out, int64_t value) {
  put(out, &value, sizeof value);
}

// Reads what put() wrote on rank 0 of the same program.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  void take(void* to, size_t bytes) {
    if (bytes != 0) std::memcpy(to, bytes_.data(), bytes);
    bytes_ = bytes_.subspan(bytes);
  }
  int64_t number() {
    int64_t value = 0;
    take(&value, sizeof value);
    return value;
  }
  bool is_empty() const { return bytes_.empty(); }

 private:
  std::span<const std::byte> bytes_;
};

std::vector<std::byte> packed(const std::vector<TraceRecord>& trace) {
  std::vector<std::byte> out;
  for (const TraceRecord& r : trace) {
    for (const int64_t value : {int64_t{r.step}, int64_t{r.layer}, static_cast<int64_t>(r.module), r.rows, r.width}) {
      put_number(&out, value);
    }
    put_number(&out, static_cast<int64_t>(r.stage.size()));
    put(&out, r.stage.data(), r.stage.size());
    put_number(&out, static_cast<int64_t>(r.data.size()));
    put(&out, r.data.data(), r.data.size());
    put_number(&out, static_cast<int64_t>(r.bound.size()));
    put(&out, r.bound.data(), r.bound.size() * sizeof(float));
  }
  return out;
}

std::vector<TraceRecord> unpacked(std::span<const std::byte> bytes) {
  std::vector<TraceRecord> trace;
  Reader reader(bytes);
  while (!reader.is_empty()) {
    TraceRecord& r = trace.emplace_back();
    r.step = static_cast<int32_t>(reader.number());
    r.layer = static_cast<int32_t>(reader.number());
    r.module = static_cast<Module>(reader.number());
    r.rows = reader.number();
    r.width = reader.number();
    r.stage.resize(static_cast<size_t>(reader.number()));
    reader.take(r.stage.data(), r.stage.size());
    r.data.resize(static_cast<size_t>(reader.number()));
    reader.take(r.data.data(), r.data.size());
    r.bound.resize(static_cast<size_t>(reader.number()));
    reader.take(r.bound.data(), r.bound.size() * sizeof(float));
  }
  return trace;
}

}  // namespace

Status run_steps(model::Forward& model, const Sequences& sequences, parallel::Communicator* ranks,
                 const std::function<void(int32_t step)>& before,
                 const std::function<void(int32_t step, std::span<const float> logits, int64_t rows)>& after) {
  std::vector<int32_t> pages(static_cast<size_t>(model.num_pages()));
  std::iota(pages.begin(), pages.end(), 0);
  for (size_t at = 0; at < 2 * sequences.size(); ++at) {
    const std::vector<int32_t>& ids = sequences[at / 2];
    const bool is_last = at % 2 == 1;
    const size_t begin = is_last ? ids.size() - 1 : 0;
    const size_t count = is_last ? 1 : ids.size() - 1;
    if (count == 0) continue;
    if (any_rank(ranks, interrupted())) return interrupted_error("verify");
    std::vector<int32_t> positions(count), rows(count);
    const std::vector<int32_t> sequence(count, 0);
    std::iota(positions.begin(), positions.end(), static_cast<int32_t>(begin));
    std::iota(rows.begin(), rows.end(), 0);
    std::vector<float> logits(count * static_cast<size_t>(model.vocab_size()));
    const model::Step step{.ids = std::span(ids).subspan(begin, count),
                           .positions = positions,
                           .sequences = sequence,
                           .page_table = pages,
                           .page_table_stride = static_cast<int64_t>(pages.size()),
                           .logit_rows = rows};
    if (before) before(static_cast<int32_t>(at));
    QD_TRY_STATUS(model.run(step, logits));
    after(static_cast<int32_t>(at), logits, static_cast<int64_t>(count));
  }
  return {};
}

std::string step_name(const Sequences& sequences, int32_t step) {
  const auto& ids = sequences[static_cast<size_t>(step / 2)];
  if (step % 2 == 1) return fmt::format("sequence {}, token {}", step / 2, ids.size() - 1);
  return fmt::format("sequence {}, tokens 0..{}", step / 2, ids.size() - 2);
}

Result<std::vector<TraceRecord>> record_trace(model::Forward& model,
                                              const std::function<void(model::StepObserver*)>& set,
                                              const Sequences& sequences, const SumRules& rules) {
  Recorder recorder(rules);
  set(&recorder);
  const Status done = run_steps(
      model, sequences, nullptr, [&](int32_t step) { recorder.begin(step); },
      [&](int32_t, std::span<const float> logits, int64_t rows) {
        recorder.add(-1, Module::kFeedForward, "logits", rows, static_cast<int64_t>(logits.size()) / rows,
                     logits.data(), sizeof(float));
      });
  set(nullptr);
  if (!done) return done.error();
  return recorder.take();
}

Status share_trace(parallel::Communicator& ranks, std::vector<TraceRecord>* trace) {
  std::vector<std::byte> bytes;
  if (ranks.rank() == 0) bytes = packed(*trace);
  uint64_t size = bytes.size();
  QD_TRY_STATUS(ranks.broadcast(std::as_writable_bytes(std::span(&size, 1)), 0));
  bytes.resize(size);
  QD_TRY_STATUS(ranks.broadcast(bytes, 0));
  if (ranks.rank() != 0) *trace = unpacked(bytes);
  return {};
}

Result<std::vector<std::string>> gather_texts(parallel::Communicator& ranks, const std::string& mine) {
  std::vector<uint64_t> sizes(static_cast<size_t>(ranks.size()));
  const uint64_t own = mine.size();
  QD_TRY_STATUS(ranks.all_gather(std::as_bytes(std::span(&own, 1)), std::as_writable_bytes(std::span(sizes))));
  const std::vector<size_t> bytes(sizes.begin(), sizes.end());
  std::string all(std::accumulate(bytes.begin(), bytes.end(), size_t{0}), '\0');
  QD_TRY_STATUS(ranks.all_gather_v(std::as_bytes(std::span(mine)), bytes, std::as_writable_bytes(std::span(all))));
  std::vector<std::string> texts;
  size_t offset = 0;
  for (const size_t size : bytes) {
    texts.push_back(all.substr(offset, size));
    offset += size;
  }
  return texts;
}

}  // namespace quadrille::cli

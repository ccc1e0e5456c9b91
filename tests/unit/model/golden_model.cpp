// SPDX-License-Identifier: Apache-2.0
#include "golden_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "core/check.h"
#include "kernels/api/registry.h"
#include "numerics/bf16.h"
#include "support/golden.h"

namespace quadrille::testing {

std::optional<std::string> model_path(const std::string& name) {
  const std::string tracked = data_path("models/" + name);
  if (std::filesystem::exists(tracked)) return tracked;
  const auto golden = golden_path("models/" + name);
  if (golden && std::filesystem::exists(*golden)) return golden;
  return std::nullopt;
}

GoldenFile::GoldenFile(const std::string& path) {
  auto file = formats::SafetensorsFile::open(path);
  QD_CHECK(file.ok(), file.ok() ? "" : file.error().message);
  file_ = std::move(*file);
}

Tensor GoldenFile::tensor(const std::string& name) const {
  const formats::TensorView* view = file_->find(name);
  QD_CHECK(view != nullptr, "no golden tensor " + name);
  Tensor tensor{view->shape, std::vector<float>(view->num_elements())};
  for (size_t i = 0; i < tensor.values.size(); ++i) {
    if (view->dtype == formats::DType::kBF16) {
      uint16_t code;
      std::memcpy(&code, view->bytes.data() + 2 * i, 2);
      tensor.values[i] = numerics::bf16_to_f32(code);
    } else if (view->dtype == formats::DType::kI32) {
      int32_t value;
      std::memcpy(&value, view->bytes.data() + 4 * i, 4);
      tensor.values[i] = static_cast<float>(value);
    } else {
      QD_CHECK(view->dtype == formats::DType::kF32, "type of " + name);
      std::memcpy(&tensor.values[i], view->bytes.data() + 4 * i, 4);
    }
  }
  return tensor;
}

std::vector<int32_t> GoldenFile::ids(const std::string& name) const {
  const Tensor values = tensor(name);
  return {values.values.begin(), values.values.end()};
}

ThreadPool& test_pool() {
  static ThreadPool pool(2);
  return pool;
}

std::string table_unavailable(const std::string& name) {
  const auto table = kernels::select_table(name);
  return table ? "" : table.error().message;
}

model::LoadOptions options_of(const Setting& setting) {
  model::LoadOptions options;
  const auto table = kernels::select_table(setting.table);
  QD_CHECK(table.ok(), table.ok() ? "" : table.error().message);
  options.table = *table;
  options.numerics = setting.numerics;
  options.rounding = setting.rounding;
  options.pool = &test_pool();
  options.cache_pages = 32;
  return options;
}

std::unique_ptr<model::Model> load_model(const std::string& folder, const model::LoadOptions& options) {
  auto model = model::Model::load(folder, options);
  if (!model) {
    ADD_FAILURE() << model.error().message;
    return nullptr;
  }
  return std::move(*model);
}

namespace {

// One step over the next chunk of every sequence that has tokens left; appends to `logits`.
void run_chunk(model::Forward& model, const std::vector<std::vector<int32_t>>& sequences, const RunOptions& options,
               const std::vector<int32_t>& page_table, int64_t stride, std::vector<int64_t>* done,
               std::vector<Tensor>* logits) {
  std::vector<int32_t> ids, positions, rows_of, wanted, wanted_of;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const auto length = static_cast<int64_t>(sequences[s].size());
    const int64_t end = std::min(length, (*done)[s] + options.chunk);
    for (int64_t p = (*done)[s]; p < end; ++p) {
      if (options.all_rows || p == length - 1) {
        wanted.push_back(static_cast<int32_t>(ids.size()));
        wanted_of.push_back(static_cast<int32_t>(s));
      }
      ids.push_back(sequences[s][p]);
      positions.push_back(static_cast<int32_t>(p));
      rows_of.push_back(static_cast<int32_t>(s));
    }
    (*done)[s] = end;
  }
  const int64_t vocab = model.vocab_size();
  std::vector<float> out(wanted.size() * vocab);
  const Status status = model.run({ids, positions, rows_of, page_table, stride, wanted}, out);
  ASSERT_TRUE(status.ok()) << status.error().message;
  for (size_t r = 0; r < wanted.size(); ++r) {
    Tensor& tensor = (*logits)[wanted_of[r]];
    ++tensor.shape[0];
    tensor.values.insert(tensor.values.end(), out.begin() + r * vocab, out.begin() + (r + 1) * vocab);
  }
}

}  // namespace

std::vector<Tensor> run_sequences(model::Forward& model, const std::vector<std::vector<int32_t>>& sequences,
                                  const RunOptions& options) {
  int64_t stride = 1, total = 0;
  for (const auto& sequence : sequences) {
    const auto pages = static_cast<int64_t>(sequence.size() + model::kPagePositions - 1) / model::kPagePositions;
    stride = std::max(stride, pages);
    total += static_cast<int64_t>(sequence.size());
  }
  std::vector<int32_t> page_table(sequences.size() * stride, -1);
  auto page = static_cast<int32_t>(model.num_pages());
  for (size_t s = 0; s < sequences.size(); ++s) {
    for (size_t i = 0; i * model::kPagePositions < sequences[s].size(); ++i) page_table[s * stride + i] = --page;
  }
  QD_CHECK(page >= 0, "the test's cache is too small");
  std::vector<int64_t> done(sequences.size(), 0);
  std::vector<Tensor> logits(sequences.size(), Tensor{{0, model.vocab_size()}, {}});
  const auto remaining = [&] {
    int64_t sum = 0;
    for (const int64_t d : done) sum += d;
    return total - sum;
  };
  while (remaining() > 0 && !::testing::Test::HasFatalFailure()) {
    run_chunk(model, sequences, options, page_table, stride, &done, &logits);
  }
  return logits;
}

double max_difference(const float* a, const float* b, int64_t width) {
  double largest = 0;
  for (int64_t i = 0; i < width; ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - b[i]);
    if (!(difference <= largest)) largest = difference;  // NaN sticks
  }
  return largest;
}

double row_rms(const float* a, int64_t width) {
  double sum = 0;
  for (int64_t i = 0; i < width; ++i) sum += static_cast<double>(a[i]) * a[i];
  return std::sqrt(sum / static_cast<double>(width));
}

double rms_difference(const float* a, const float* b, int64_t width) {
  double sum = 0;
  for (int64_t i = 0; i < width; ++i) sum += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
  return std::sqrt(sum / static_cast<double>(width));
}

double median(std::vector<double> values) {
  QD_CHECK(!values.empty(), "median of nothing");
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

}  // namespace quadrille::testing

// SPDX-License-Identifier: Apache-2.0
// Golden models for tests: finds a model's folder and its golden tensors (in tests/data/models, else in the golden
// folder), runs token sequences through a model in chunks and batches.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "formats/safetensors.h"
#include "model/model.h"

namespace quadrille::testing {

// tests/data/models/NAME where that exists, else the same in the golden folder, else nothing.
std::optional<std::string> model_path(const std::string& name);

struct Tensor {
  std::vector<int64_t> shape;
  std::vector<float> values;  // F32, BF16 and I32 widened

  int64_t rows() const { return shape.empty() ? 1 : shape[0]; }
  int64_t width() const { return shape.empty() ? 1 : static_cast<int64_t>(values.size()) / shape[0]; }
  const float* row(int64_t r) const { return values.data() + r * width(); }
};

class GoldenFile {
 public:
  explicit GoldenFile(const std::string& path);
  bool has(const std::string& name) const { return file_->find(name) != nullptr; }
  Tensor tensor(const std::string& name) const;
  std::vector<int32_t> ids(const std::string& name) const;

 private:
  std::optional<formats::SafetensorsFile> file_;
};

// One pool for all tests of a program.
ThreadPool& test_pool();

struct Setting {
  std::string table;
  kernels::Numerics numerics = kernels::Numerics::kExact;
  kernels::Rounding rounding = kernels::Rounding::kF32;
};

model::LoadOptions options_of(const Setting& setting);
// Fails the test when the model does not load.
std::unique_ptr<model::Model> load_model(const std::string& folder, const model::LoadOptions& options);

// Why the table cannot run here, or "" when it can.
std::string table_unavailable(const std::string& name);

struct RunOptions {
  int64_t chunk = 1 << 20;  // tokens of one sequence in one step
  bool all_rows = true;     // logits of every token, else of the last one alone
};
// Runs the sequences side by side, each in its own pages (in descending page order, so that page numbers matter):
// logits [tokens, vocab] of each.
std::vector<Tensor> run_sequences(model::Forward& model, const std::vector<std::vector<int32_t>>& sequences,
                                  const RunOptions& options = {});

// Largest difference of two rows; root mean square of a row.
double max_difference(const float* a, const float* b, int64_t width);
double row_rms(const float* a, int64_t width);
double rms_difference(const float* a, const float* b, int64_t width);
double median(std::vector<double> values);

}  // namespace quadrille::testing

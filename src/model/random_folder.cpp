// SPDX-License-Identifier: Apache-2.0
// The list of modules out of a config, their files, and their numbers.
#include "model/random_folder.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <mutex>

#include "formats/compressed_tensors.h"
#include "formats/safetensors_writer.h"
#include "layout/w4_lanes16.h"
#include "model/config.h"
#include "model/random_numbers.h"
#include "numerics/bf16.h"
#include "quantize/folder_plan.h"
#include "quantize/partial_folder.h"

namespace quadrille::model {
namespace {

namespace fs = std::filesystem;
using formats::DType;
using formats::Json;

constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr int64_t kPieceValues = int64_t{1} << 20;  // of a bf16 tensor, made and written at once

// One module; `deviation` 0: all ones, a norm.
struct RandomModule {
  std::string path;
  std::vector<int64_t> shape;  // [n, k] or [n]
  float deviation = 0;
  bool has_bias = false;
  bool is_quantised = false;
  size_t shard = 0;

  int64_t count() const { return shape.size() == 2 ? shape[0] * shape[1] : shape[0]; }
};

// All modules of a model, in the order in which a checkpoint has them.
class ModuleList {
 public:
  explicit ModuleList(const ModelConfig& config) : config_(config) {}

  std::vector<RandomModule> make() {
    const TensorNames& names = config_.names;
    const int64_t hidden = config_.hidden_size;
    matrix(names.embedding, config_.vocab_size, hidden, 1.0f);
    for (int64_t l = 0; l < config_.num_layers; ++l) add_layer(l);
    norm(names.final_norm, hidden);
    if (!config_.tie_word_embeddings) matrix(names.lm_head, config_.vocab_size, hidden, deviation_for(hidden));
    return std::move(modules_);
  }

 private:
  void norm(const std::string& path, int64_t width) { modules_.push_back({path, {width}}); }
  void matrix(const std::string& path, int64_t n, int64_t k, float deviation, bool has_bias = false) {
    modules_.push_back({path, {n, k}, deviation, has_bias});
  }
  void mlp(int64_t l, const std::string& gate, const std::string& up, const std::string& down, int64_t width,
           int64_t expert = -1) {
    const int64_t hidden = config_.hidden_size;
    matrix(config_.names.layer_path(l, gate, expert), width, hidden, deviation_for(hidden));
    matrix(config_.names.layer_path(l, up, expert), width, hidden, deviation_for(hidden));
    matrix(config_.names.layer_path(l, down, expert), hidden, width, deviation_for(width));
  }

  void add_attention(int64_t l) {
    const TensorNames& names = config_.names;
    const auto path = [&](const std::string& name) { return names.layer_path(l, name); };
    const int64_t hidden = config_.hidden_size, q = config_.q_width(), kv = config_.kv_width();
    norm(path(names.input_norm), hidden);
    matrix(path(names.q), q, hidden, deviation_for(hidden), config_.qkv_bias);
    matrix(path(names.k), kv, hidden, deviation_for(hidden), config_.qkv_bias);
    matrix(path(names.v), kv, hidden, deviation_for(hidden), config_.qkv_bias);
    matrix(path(names.o), hidden, q, deviation_for(q), config_.o_bias);
    if (config_.qk_norm != QkNorm::kNone) {
      const bool per_head = config_.qk_norm == QkNorm::kPerHead;
      norm(path(names.q_norm), per_head ? config_.head_dim : q);
      norm(path(names.k_norm), per_head ? config_.head_dim : kv);
    }
    norm(path(names.post_attention_norm), hidden);
  }

  void add_layer(int64_t l) {
    const TensorNames& names = config_.names;
    const int64_t hidden = config_.hidden_size;
    add_attention(l);
    if (!config_.layers[static_cast<size_t>(l)].is_moe) {
      mlp(l, names.dense_gate, names.dense_up, names.dense_down, config_.dense_width);
      return;
    }
    // Wide enough that tokens choose their experts for themselves.
    matrix(names.layer_path(l, names.router), config_.router.num_experts, hidden, 3.5f * deviation_for(hidden));
    for (int64_t e = 0; e < config_.router.num_experts; ++e) {
      mlp(l, names.expert_gate, names.expert_up, names.expert_down, config_.expert_width, e);
    }
    if (config_.shared_width == 0) return;
    mlp(l, names.shared_gate_proj, names.shared_up, names.shared_down, config_.shared_width);
    if (config_.shared_has_gate) matrix(names.layer_path(l, names.shared_gate), 1, hidden, deviation_for(hidden));
  }

  const ModelConfig& config_;
  std::vector<RandomModule> modules_;
};

// The tensors of a module.
std::vector<formats::TensorDeclaration> tensors_of(const RandomModule& module, int64_t group_size) {
  std::vector<formats::TensorDeclaration> tensors;
  if (module.is_quantised) {
    const int64_t n = module.shape[0], k = module.shape[1];
    tensors.push_back({module.path + ".weight_packed", DType::kI32, {n, quantize::words_per_row(k)}});
    tensors.push_back({module.path + ".weight_scale", DType::kBF16, {n, quantize::scales_per_row(k, group_size)}});
    tensors.push_back({module.path + ".weight_shape", DType::kI64, {2}});
  } else {
    tensors.push_back({module.path + ".weight", DType::kBF16, module.shape});
  }
  if (module.has_bias) tensors.push_back({module.path + ".bias", DType::kBF16, {module.shape[0]}});
  return tensors;
}

uint64_t bytes_of(const formats::TensorDeclaration& tensor) {
  uint64_t bytes = static_cast<uint64_t>(formats::dtype_bits(tensor.dtype)) / 8;
  for (const int64_t extent : tensor.shape) bytes *= static_cast<uint64_t>(extent);
  return bytes;
}
uint64_t bytes_of(const RandomModule& module, int64_t group_size) {
  uint64_t bytes = 0;
  for (const formats::TensorDeclaration& tensor : tensors_of(module, group_size)) bytes += bytes_of(tensor);
  return bytes;
}

std::string shard_name(size_t shard, size_t count) {
  return count == 1 ? "model.safetensors" : fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, count);
}

class FolderWriter {
 public:
  FolderWriter(const RandomFolderOptions& options, std::string folder)
      : options_(options), folder_(std::move(folder)) {}

  Status open(std::vector<RandomModule> modules) {
    modules_ = std::move(modules);
    const size_t count = cut_into_shards();
    std::vector<std::vector<formats::TensorDeclaration>> tensors(count);
    Json map = Json::object();
    for (const RandomModule& module : modules_) {
      for (formats::TensorDeclaration& tensor : tensors_of(module, options_.group_size)) {
        map[tensor.name] = shard_name(module.shard, count);
        tensors[module.shard].push_back(std::move(tensor));
        ++report_.num_tensors;
      }
    }
    QD_TRY_STATUS(check_space());
    if (count > 1) {
      const Json index = {{"metadata", {{"total_size", report_.bytes}}}, {"weight_map", std::move(map)}};
      QD_TRY_STATUS(quantize::write_new_file(folder_ + "/" + kIndexName, index.dump(2) + "\n"));
      report_.files.emplace_back(kIndexName);
    }
    for (size_t shard = 0; shard < count; ++shard) {
      report_.files.push_back(shard_name(shard, count));
      QD_TRY(formats::SafetensorsWriter writer,
             formats::SafetensorsWriter::create(folder_ + "/" + report_.files.back(), std::move(tensors[shard]),
                                                {{"format", "pt"}}));
      writers_.push_back(std::move(writer));
    }
    return {};
  }

  // Threads own contiguous modules, so that each writes a file of its own for most of the time.
  Status write() {
    std::vector<Status> status(modules_.size());
    std::vector<Scratch> scratch(static_cast<size_t>(options_.pool->num_active()));
    options_.pool->run(static_cast<int64_t>(modules_.size()), [&](int64_t i, int worker) {
      const auto index = static_cast<size_t>(i);
      status[index] = write_module(index, &scratch[static_cast<size_t>(worker)]);
    });
    for (const Status& one : status) QD_TRY_STATUS(one);
    for (formats::SafetensorsWriter& writer : writers_) {
      QD_TRY_STATUS(writer.finish(formats::SafetensorsWriter::Flush::kNo));
    }
    return {};
  }

  RandomFolderReport report() const { return report_; }

 private:
  struct Scratch {
    std::vector<uint64_t> codes;
    std::vector<uint16_t> values;
  };

  size_t cut_into_shards() {
    size_t shard = 0;
    uint64_t used = 0;
    for (RandomModule& module : modules_) {
      const uint64_t bytes = bytes_of(module, options_.group_size);
      if (used > 0 && used + bytes > options_.shard_bytes) {
        ++shard;
        used = 0;
      }
      module.shard = shard;
      used += bytes;
      report_.bytes += bytes;
    }
    return shard + 1;
  }

  Status check_space() const {
    std::error_code error;
    const fs::space_info space = fs::space(folder_, error);
    if (error || space.available >= report_.bytes) return {};
    return make_error(ErrorCode::kCapacity, "{}: expected {} bytes of free space, found {}", folder_, report_.bytes,
                      space.available);
  }

  Status write_module(size_t index, Scratch* scratch) {
    if (options_.cancel != nullptr && options_.cancel->load(std::memory_order_relaxed)) {
      return make_error(ErrorCode::kCancelled, "{}: stopped on request", folder_);
    }
    const RandomModule& module = modules_[index];
    formats::SafetensorsWriter& writer = writers_[module.shard];
    Random seeds(options_.seed);
    Random random(seeds.next() ^ static_cast<uint64_t>(index) << 20);
    QD_TRY_STATUS(module.is_quantised ? write_codes(module, &random, scratch, &writer)
                                      : write_values(module, &random, scratch, &writer));
    if (module.has_bias) {
      const std::vector<uint16_t> zeros(static_cast<size_t>(module.shape[0]));
      QD_TRY_STATUS(writer.write(module.path + ".bias", std::as_bytes(std::span(zeros))));
    }
    tell(module);
    return {};
  }

  Status write_codes(const RandomModule& module, Random* random, Scratch* scratch,
                     formats::SafetensorsWriter* writer) const {
    const int64_t n = module.shape[0], k = module.shape[1];
    scratch->codes.resize(static_cast<size_t>((n * k + 15) / 16));
    for (uint64_t& word : scratch->codes) word = centred_codes(random->next());
    const auto bytes = std::as_bytes(std::span(scratch->codes)).first(static_cast<size_t>(n * k / 2));
    QD_TRY_STATUS(writer->write(module.path + ".weight_packed", bytes));
    // Scales spread over a factor of two.
    const float scale = module.deviation / std::sqrt(kCentredCodeSquare);
    scratch->values.resize(static_cast<size_t>(n * layout::num_groups(k, options_.group_size)));
    for (uint16_t& s : scratch->values) s = numerics::bf16_from_f32(scale * (1.0f + uniform(random->next()) / 3));
    QD_TRY_STATUS(writer->write(module.path + ".weight_scale", std::as_bytes(std::span(scratch->values))));
    const int64_t shape[2] = {n, k};
    return writer->write(module.path + ".weight_shape", std::as_bytes(std::span(shape)));
  }

  static Status write_values(const RandomModule& module, Random* random, Scratch* scratch,
                             formats::SafetensorsWriter* writer) {
    const float range = module.deviation * std::sqrt(3.0f);
    for (int64_t begin = 0; begin < module.count(); begin += kPieceValues) {
      const int64_t count = std::min(kPieceValues, module.count() - begin);
      scratch->values.resize(static_cast<size_t>(count));
      uint64_t bits = 0;
      for (int64_t i = 0; i < count; ++i) {
        bits = i % 4 == 0 ? random->next() : bits >> 16;
        const float value = module.deviation > 0 ? range * uniform(bits) : 1.0f;
        scratch->values[static_cast<size_t>(i)] = numerics::bf16_from_f32(value);
      }
      QD_TRY_STATUS(writer->append(module.path + ".weight", std::as_bytes(std::span(scratch->values))));
    }
    return {};
  }

  void tell(const RandomModule& module) {
    const std::lock_guard lock(mutex_);
    bytes_done_ += bytes_of(module, options_.group_size);
    if (options_.progress) options_.progress(bytes_done_, report_.bytes, module.path);
  }

  const RandomFolderOptions& options_;
  std::string folder_;
  std::vector<RandomModule> modules_;
  std::vector<formats::SafetensorsWriter> writers_;
  RandomFolderReport report_;
  std::mutex mutex_;  // guards what follows, and the caller's callback
  uint64_t bytes_done_ = 0;
};

// Decides by the config that the folder gets, so that its readers decide alike.
Status decide(const Json& quantization, int64_t group_size, std::vector<RandomModule>* modules) {
  QD_TRY(const formats::QuantizationConfig rules, formats::QuantizationConfig::parse(quantization, "make-model"));
  for (RandomModule& module : *modules) {
    if (module.shape.size() != 2 || !quantize::is_quantizable_name(module.path + ".weight")) continue;
    QD_TRY(const formats::QuantizationDecision decision, rules.decide(module.path));
    if (decision.kind == formats::QuantizationKind::kUnquantized) continue;
    if (auto legal = quantize::check_group_size(module.shape[1], group_size); !legal) {
      return legal.error().in(fmt::format("'{}'", module.path));
    }
    if (module.shape[0] % 8 != 0 || module.shape[1] % 8 != 0) {
      return make_error(ErrorCode::kInvalidArgument, "'{}': expected n and k in multiples of 8, found {}", module.path,
                        formats::shape_text(module.shape));
    }
    module.is_quantised = true;
  }
  return {};
}

}  // namespace

Result<RandomFolderReport> write_random_folder(const Json& config, const std::string& where, const std::string& out,
                                               const RandomFolderOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  if (options.pool == nullptr) return make_error(ErrorCode::kInvalidArgument, "make-model: a thread pool is needed");
  QD_TRY(const formats::HfConfig raw, formats::parse_hf_config(config, where));
  if (raw.quantization_config) {
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: has a 'quantization_config'; expected one without: this command writes its own", where);
  }
  QD_TRY(const ModelConfig model, make_model_config(raw));
  quantize::QuantizeOptions quantisation;
  quantisation.group_size = options.group_size;
  Json written = config;
  written["quantization_config"] = quantize::quantization_config(quantisation, quantize::default_ignore());
  if (!written.contains("torch_dtype")) written["torch_dtype"] = "bfloat16";
  std::vector<RandomModule> modules = ModuleList(model).make();
  QD_TRY_STATUS(decide(written["quantization_config"], options.group_size, &modules));

  QD_TRY(quantize::PartialFolder partial, quantize::PartialFolder::create(out));
  FolderWriter writer(options, partial.path());
  QD_TRY_STATUS(quantize::write_new_file(partial.path() + "/config.json", written.dump(2) + "\n"));
  QD_TRY_STATUS(writer.open(std::move(modules)));
  QD_TRY_STATUS(writer.write());
  RandomFolderReport report = writer.report();
  QD_TRY_STATUS(partial.commit());
  report.files.emplace_back("config.json");
  std::sort(report.files.begin(), report.files.end());
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace quadrille::model

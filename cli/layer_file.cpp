// SPDX-License-Identifier: Apache-2.0
// Checks every tensor against the others before any weight is prepared.
#include "cli/layer_file.h"

#include <cstring>
#include <utility>

#include "core/check.h"
#include "formats/safetensors.h"
#include "numerics/bf16.h"

namespace quadrille::cli {
namespace {

using formats::DType;
using formats::SafetensorsFile;
using formats::TensorView;

Result<const TensorView*> find(const SafetensorsFile& file, const std::string& name) {
  const TensorView* tensor = file.find(name);
  if (tensor == nullptr) tensor = file.find("layer." + name);
  if (tensor != nullptr) return tensor;
  return make_error(ErrorCode::kNotFound,
                    "{}: no tensor '{}' (nor 'layer.{}'); a layer file has w13_packed, w13_scale, w2_packed, w2_scale, "
                    "x, topk_ids, topk_weights",
                    file.path(), name, name);
}

// The tensor of that type and shape; -1 stands for any dimension of at least one.
Result<const TensorView*> find_checked(const SafetensorsFile& file, const std::string& name,
                                       std::initializer_list<DType> types, const std::vector<int64_t>& shape) {
  QD_TRY(const TensorView* tensor, find(file, name));
  std::string type_names;
  bool has_type = false;
  for (const DType type : types) {
    type_names += std::string(type_names.empty() ? "" : " or ") + formats::dtype_name(type);
    has_type = has_type || tensor->dtype == type;
  }
  bool fits = has_type && tensor->shape.size() == shape.size();
  for (size_t i = 0; fits && i < shape.size(); ++i) {
    fits = shape[i] < 0 ? tensor->shape[i] > 0 : tensor->shape[i] == shape[i];
  }
  if (fits) return tensor;
  std::string wanted;
  for (const int64_t size : shape) wanted += (wanted.empty() ? "" : ", ") + (size < 0 ? "any" : std::to_string(size));
  return make_error(ErrorCode::kInvalidData, "{}: expected {} [{}], found {} {}", tensor->where(), type_names, wanted,
                    formats::dtype_name(tensor->dtype), formats::shape_text(tensor->shape));
}

Result<std::vector<std::byte>> copy_bytes(const TensorView& tensor) {
  std::vector<std::byte> bytes(tensor.bytes.size());
  QD_TRY_STATUS(tensor.copy_to(bytes));
  return bytes;
}

// BF16 or F32, widened.
Result<std::vector<float>> copy_floats(const TensorView& tensor) {
  QD_TRY(const std::vector<std::byte> bytes, copy_bytes(tensor));
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  if (tensor.dtype == DType::kF32) {
    if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t code = 0;
    std::memcpy(&code, bytes.data() + 2 * i, sizeof code);
    values[i] = numerics::bf16_to_f32(code);
  }
  return values;
}

Result<std::vector<int32_t>> copy_ids(const TensorView& tensor, int64_t num_experts) {
  QD_TRY(const std::vector<std::byte> bytes, copy_bytes(tensor));
  std::vector<int32_t> ids(static_cast<size_t>(tensor.num_elements()));
  const size_t size = tensor.dtype == DType::kI64 ? 8 : 4;
  for (size_t i = 0; i < ids.size(); ++i) {
    int64_t id = 0;
    if (size == 8) std::memcpy(&id, bytes.data() + 8 * i, 8);
    if (size == 4) {
      int32_t narrow = 0;
      std::memcpy(&narrow, bytes.data() + 4 * i, 4);
      id = narrow;
    }
    if (id < -1 || id >= num_experts) {
      return make_error(ErrorCode::kInvalidData,
                        "{}: element {}: expected an expert of 0..{} (or -1: not here), found {}", tensor.where(), i,
                        num_experts - 1, id);
    }
    ids[i] = static_cast<int32_t>(id);
  }
  return ids;
}

// 0 (one scale a channel), 32, 64 or 128.
Result<int64_t> group_size_of(const TensorView& scales, int64_t k) {
  const int64_t groups = scales.shape[2];
  if (groups == 1) return 0;
  for (const int64_t size : {32, 64, 128}) {
    if ((k + size - 1) / size == groups) return size;
  }
  return make_error(ErrorCode::kUnsupported,
                    "{}: {} scales a row for K = {} is no group size that runs; legal: K/32, K/64, K/128, or 1 scale a "
                    "channel",
                    scales.where(), groups, k);
}

Result<LayerWeights> read_weights(const SafetensorsFile& file, const std::string& name, int64_t num_experts, int64_t n,
                                  int64_t k) {
  LayerWeights weights{.n = n, .k = k, .group_size = 0, .packed = {}, .scales = {}};
  QD_TRY(const TensorView* packed, find_checked(file, name + "_packed", {DType::kI32}, {num_experts, n, k / 8}));
  QD_TRY(const TensorView* scales, find_checked(file, name + "_scale", {DType::kBF16}, {num_experts, n, -1}));
  QD_TRY(weights.group_size, group_size_of(*scales, k));
  if (auto legal = kernels::check_w4a8_shape(n, k, weights.group_size); !legal)
    return legal.error().in(packed->where());
  QD_TRY(weights.packed, copy_bytes(*packed));
  QD_TRY(weights.scales, copy_bytes(*scales));
  return weights;
}

// Prepares all experts' matrices and makes the linear layer over them.
Status prepare_matrices(LayerWeights weights, int64_t num_experts, kernels::Numerics numerics, ThreadPool& pool,
                        std::vector<prepare::PreparedW4>* prepared, std::vector<kernels::W4Matrix>* views,
                        moe::Linear* linear) {
  const auto experts = static_cast<size_t>(num_experts);
  for (size_t e = 0; e < experts; ++e) {
    prepare::CanonicalW4 matrix;
    matrix.n = weights.n;
    matrix.k = weights.k;
    matrix.group_size = weights.group_size;
    matrix.packed = weights.packed.data() + e * (weights.packed.size() / experts);
    matrix.scales = weights.scales.data() + e * (weights.scales.size() / experts);
    auto one = prepare::prepare_w4(matrix, numerics, &pool);
    if (!one) return one.error().in(fmt::format("expert {}", e));
    prepared->push_back(std::move(*one));
  }
  for (const prepare::PreparedW4& one : *prepared) views->push_back(one.view());
  *linear = moe::W4Linear{num_experts, weights.n, weights.k, weights.group_size, views->data(), nullptr};
  return {};
}

Status check_metadata(const SafetensorsFile& file) {
  const auto activation = file.metadata().find("activation");
  if (activation == file.metadata().end() || activation->second == "silu") return {};
  return make_error(ErrorCode::kUnsupported, "{}: metadata 'activation' is '{}'; legal: silu", file.path(),
                    activation->second);
}

}  // namespace

Status read_layer_file(const std::string& path, kernels::Rounding rounding, LayerFile* layer) {
  QD_TRY(const SafetensorsFile file, SafetensorsFile::open(path));
  QD_TRY_STATUS(check_metadata(file));
  QD_TRY(const TensorView* w13, find_checked(file, "w13_packed", {DType::kI32}, {-1, -1, -1}));
  layer->num_experts = w13->shape[0];
  layer->width = w13->shape[1] / 2;
  layer->hidden = w13->shape[2] * 8;
  if (w13->shape[1] % 2 != 0 || layer->width % 8 != 0) {
    return make_error(ErrorCode::kInvalidData,
                      "{}: expected gate rows and then up rows, as many of each and a multiple of 8, found {} rows",
                      w13->where(), w13->shape[1]);
  }
  QD_TRY(layer->w13, read_weights(file, "w13", layer->num_experts, 2 * layer->width, layer->hidden));
  QD_TRY(layer->w2, read_weights(file, "w2", layer->num_experts, layer->hidden, layer->width));
  QD_TRY(const TensorView* ids, find_checked(file, "topk_ids", {DType::kI32, DType::kI64}, {-1, -1}));
  layer->num_tokens = ids->shape[0];
  layer->top_k = ids->shape[1];
  QD_TRY(const TensorView* weights, find_checked(file, "topk_weights", {DType::kF32, DType::kBF16}, ids->shape));
  QD_TRY(const TensorView* x, find_checked(file, "x", {DType::kBF16, DType::kF32}, {layer->num_tokens, layer->hidden}));
  QD_TRY(layer->topk_ids, copy_ids(*ids, layer->num_experts));
  QD_TRY(layer->topk_weights, copy_floats(*weights));
  QD_TRY(layer->x, copy_floats(*x));
  if (rounding == kernels::Rounding::kBf16) {
    for (float& value : layer->x) value = numerics::round_to_bf16(value);
  }
  layer->layer.rule.num_experts = layer->num_experts;
  layer->layer.rule.top_k = layer->top_k;
  return {};
}

Status prepare_layer(const std::string& path, kernels::Numerics numerics, ThreadPool& pool, LayerFile* layer) {
  moe::GatedMlp& mlp = layer->layer.experts;
  mlp.hidden = layer->hidden;
  mlp.width = layer->width;
  if (auto done = prepare_matrices(std::exchange(layer->w13, {}), layer->num_experts, numerics, pool, &layer->gate_up,
                                   &layer->gate_up_views, &mlp.gate_up);
      !done) {
    return done.error().in(path + ": w13");
  }
  if (auto done = prepare_matrices(std::exchange(layer->w2, {}), layer->num_experts, numerics, pool, &layer->down,
                                   &layer->down_views, &mlp.down);
      !done) {
    return done.error().in(path + ": w2");
  }
  if (auto legal = moe::check_layer(layer->layer); !legal) return legal.error().in(path);
  return {};
}

namespace {

DType stored_type(moe::StageType type) {
  switch (type) {
    case moe::StageType::kF32:
      return DType::kF32;
    case moe::StageType::kBf16InF32:
      return DType::kBF16;
    case moe::StageType::kE4M3:
      return DType::kF8E4M3;
    case moe::StageType::kI32:
      return DType::kI32;
    case moe::StageType::kI64:
      return DType::kI64;
  }
  QD_CHECK(false, "unknown stage type");
}

}  // namespace

void StageCollector::stage(const moe::Stage& stage) {
  if (!all_ && std::string_view(stage.name) != "out") return;
  Kept kept;
  kept.declaration = {stage.name, stored_type(stage.type), stage.shape};
  size_t count = 1;
  for (const int64_t size : stage.shape) count *= static_cast<size_t>(size);
  kept.bytes.resize(count * static_cast<size_t>(formats::dtype_bits(kept.declaration.dtype)) / 8);
  if (stage.type == moe::StageType::kBf16InF32) {
    const auto* values = static_cast<const float*>(stage.data);
    for (size_t i = 0; i < count; ++i) {
      const uint16_t code = numerics::bf16_from_f32(values[i]);
      std::memcpy(kept.bytes.data() + 2 * i, &code, sizeof code);
    }
  } else if (!kept.bytes.empty()) {
    std::memcpy(kept.bytes.data(), stage.data, kept.bytes.size());
  }
  stages_.push_back(std::move(kept));
}

void StageCollector::add_out(int64_t num_tokens, int64_t hidden, const std::vector<uint16_t>& out) {
  Kept kept;
  kept.declaration = {"out", DType::kBF16, {num_tokens, hidden}};
  kept.bytes.resize(2 * out.size());
  if (!out.empty()) std::memcpy(kept.bytes.data(), out.data(), kept.bytes.size());
  stages_.push_back(std::move(kept));
}

Status StageCollector::write(const std::string& path, const std::map<std::string, std::string>& metadata) const {
  std::vector<formats::TensorDeclaration> declarations;
  for (const Kept& kept : stages_) declarations.push_back(kept.declaration);
  QD_TRY(formats::SafetensorsWriter writer, formats::SafetensorsWriter::create(path, declarations, metadata));
  for (const Kept& kept : stages_) QD_TRY_STATUS(writer.write(kept.declaration.name, kept.bytes));
  return writer.finish();
}

}  // namespace quadrille::cli

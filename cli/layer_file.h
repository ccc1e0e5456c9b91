// SPDX-License-Identifier: Apache-2.0
// One MoE layer from a safetensors file: reads and checks it for the command `layer`, and collects the stages that are
// written back.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/result.h"
#include "core/thread_pool.h"
#include "formats/safetensors_writer.h"
#include "kernels/api/problems.h"
#include "moe/layer.h"
#include "prepare/prepare_w4.h"

namespace quadrille::cli {

// One stack of matrices as the file has it.
struct LayerWeights {
  int64_t n = 0, k = 0, group_size = 0;
  std::vector<std::byte> packed;  // [num_experts, n, k/8] I32, uint4b8
  std::vector<std::byte> scales;  // [num_experts, n, groups] bf16
};

// The layer with what it refers to: valid while this object lives; it does not move after prepare_layer().
struct LayerFile {
  int64_t num_experts = 0, hidden = 0, width = 0, num_tokens = 0, top_k = 0;
  LayerWeights w13, w2;             // until they are prepared
  std::vector<float> x;             // [num_tokens, hidden]
  std::vector<int32_t> topk_ids;    // [num_tokens, top_k]
  std::vector<float> topk_weights;  // [num_tokens, top_k]
  moe::MoeLayer layer;
  std::vector<prepare::PreparedW4> gate_up, down;            // [num_experts]
  std::vector<kernels::W4Matrix> gate_up_views, down_views;  // [num_experts]
};

// Tensors (with or without "layer." in front): w13_packed I32 [E, 2 I, H/8], w13_scale BF16 [E, 2 I, G], w2_packed I32
// [E, H, I/8], w2_scale BF16 [E, H, G], x BF16 [T, H], topk_ids I32 or I64 [T, k], topk_weights F32 [T, k]. The group
// sizes follow from the scales; metadata "activation" may say "silu". x is rounded to bf16 where `rounding` says so.
// Errors: kNotFound, kInvalidData, kUnsupported, each with file and tensor.
Status read_layer_file(const std::string& path, kernels::Rounding rounding, LayerFile* file);

// Prepares the weights for the CPU tables and makes `layer`; w13 and w2 are empty then. Errors: kInvalidData.
Status prepare_layer(const std::string& path, kernels::Numerics numerics, ThreadPool& pool, LayerFile* file);

// Collects stages as they come, ready to be written. BF16 where the stage's values are bf16.
class StageCollector final : public moe::LayerObserver {
 public:
  // Without `all` only `out` is kept.
  explicit StageCollector(bool all) : all_(all) {}
  void stage(const moe::Stage& stage) override;
  // The output alone, as bf16 values: of a layer that ran elsewhere.
  void add_out(int64_t num_tokens, int64_t hidden, const std::vector<uint16_t>& out);
  // Writes one tensor a stage.
  Status write(const std::string& path, const std::map<std::string, std::string>& metadata) const;
  size_t count() const { return stages_.size(); }

 private:
  struct Kept {
    formats::TensorDeclaration declaration;
    std::vector<std::byte> bytes;
  };
  bool all_;
  std::vector<Kept> stages_;
};

}  // namespace quadrille::cli

// SPDX-License-Identifier: Apache-2.0
// A small folder with the names of a Mixture-of-Experts model, for the tests of quantize_folder.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "formats/safetensors_writer.h"
#include "support/scratch_folder.h"

namespace quadrille::quantize::testing {

using Shapes = std::map<std::string, std::vector<int64_t>>;

inline Shapes small_shapes() {
  return {{"model.embed_tokens.weight", {24, 64}},
          {"model.norm.weight", {64}},
          {"lm_head.weight", {24, 64}},
          {"model.layers.0.input_layernorm.weight", {64}},
          {"model.layers.0.self_attn.q_proj.weight", {32, 64}},
          {"model.layers.0.self_attn.q_proj.bias", {32}},
          {"model.layers.0.mlp.gate.weight", {8, 64}},
          {"model.layers.0.mlp.shared_expert_gate.weight", {1, 64}},
          {"model.layers.0.mlp.router_extra.weight", {8, 64}},
          {"model.layers.0.mlp.experts.0.up_proj.weight", {96, 64}},
          {"model.layers.0.mlp.experts.0.down_proj.weight", {64, 96}},
          {"model.layers.0.block_sparse_moe.experts.0.w1.weight", {96, 64}}};
}

// A bf16 matrix of numbers that depend on the name alone, all finite.
inline std::string bf16_bytes(const std::string& name, int64_t count) {
  uint32_t state = 2166136261u;
  for (const char c : name) state = (state ^ static_cast<unsigned char>(c)) * 16777619u;
  std::string bytes;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    const auto mantissa = static_cast<uint16_t>((state >> 9) & 0x7f);
    const auto exponent = static_cast<uint16_t>(115 + ((state >> 16) & 7));
    const auto code = static_cast<uint16_t>((state >> 31) << 15 | exponent << 7 | mantissa);
    bytes.append(reinterpret_cast<const char*>(&code), 2);
  }
  return bytes;
}

inline void write_safetensors(const std::string& path, const Shapes& shapes,
                              const std::map<std::string, std::string>& data = {}) {
  std::vector<formats::TensorDeclaration> declarations;
  for (const auto& [name, shape] : shapes) declarations.push_back({name, formats::DType::kBF16, shape});
  auto writer = formats::SafetensorsWriter::create(path, declarations, {{"format", "pt"}});
  ASSERT_TRUE(writer) << writer.error().message;
  for (const auto& [name, shape] : shapes) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    const auto own = data.find(name);
    const std::string bytes = own == data.end() ? bf16_bytes(name, count) : own->second;
    ASSERT_TRUE(writer->write(name, std::as_bytes(std::span(bytes))));
  }
  ASSERT_TRUE(writer->finish());
}

// FOLDER/NAME with config, tokenizer files and one safetensors file.
inline std::string write_model(const quadrille::testing::ScratchFolder& folder, const std::string& name,
                               const Shapes& shapes, const std::map<std::string, std::string>& data = {}) {
  folder.write(name + "/config.json", R"({"model_type":"qwen3_moe","hidden_size":64,"rms_norm_eps":1e-06})");
  folder.write(name + "/tokenizer.json", "{\"a\": 1}\n");
  folder.write(name + "/chat_template.jinja", "{{ x }}\n");
  folder.write(name + "/generation_config.json", "{}");
  folder.write(name + "/pytorch_model.bin", "weights in another format");
  folder.write(name + "/.gitattributes", "x");
  folder.write(name + "/original/params.json", "{}");
  write_safetensors(folder.file(name + "/model.safetensors"), shapes, data);
  return folder.file(name);
}

}  // namespace quadrille::quantize::testing

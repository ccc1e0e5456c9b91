// SPDX-License-Identifier: Apache-2.0
// The families of architectures as data: each turns the raw fields of config.json into a ModelConfig. A new family is
// one file in families/ and one line in families.cpp. Called by config.cpp.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/result.h"
#include "formats/hf_config.h"
#include "model/config.h"

namespace quadrille::model {

struct Family {
  const char* name;          // model_type in config.json
  const char* architecture;  // entry of `architectures`
  double default_rope_theta;
  // Fills what differs between families into a config that has the common fields.
  Status (*fill)(const formats::HfConfig& raw, ModelConfig* config);
};

std::span<const Family* const> all_families();

extern const Family kQwen3MoeFamily;
extern const Family kQwen2MoeFamily;
extern const Family kMixtralFamily;
extern const Family kOlmoeFamily;

// Softmax over all experts, then the best `num_experts_per_tok`.
Status fill_softmax_router(const formats::HfConfig& raw, bool renormalise, ModelConfig* config);
// A layer is MoE unless mlp_only_layers has it or (layer + 1) is no multiple of decoder_sparse_step. Layers that are
// not take intermediate_size.
Status fill_sparse_layers(const formats::HfConfig& raw, ModelConfig* config);
// The window of every layer: layer_types where the file has it, else `window_of` the layer.
Status fill_windows(const formats::HfConfig& raw, int64_t window, bool (*has_window)(const formats::HfConfig&, int64_t),
                    ModelConfig* config);

}  // namespace quadrille::model

// SPDX-License-Identifier: Apache-2.0
// True shapes of published models, for measuring without their weights; and the work that a step of a model needs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/result.h"
#include "formats/hf_config.h"
#include "formats/json.h"
#include "model/config.h"

namespace quadrille::plan {

// Those that this engine runs.
std::vector<std::string> bench_shape_names();
// The config of that shape, cut to `layers` layers and `vocabulary` tokens (0: all). kInvalidArgument for an unknown
// name.
Result<model::ModelConfig> bench_shape(const std::string& name, int64_t layers, int64_t vocabulary = 0);

// All, with those that are only planned for.
std::vector<std::string> named_shapes();
// The config.json of that shape. kInvalidArgument for an unknown name.
Result<formats::HfConfig> named_shape(const std::string& name);
Result<formats::Json> shape_json(const std::string& name);
// Cuts the config to `layers` layers and `vocabulary` tokens (0: as it is).
void set_size(int64_t layers, int64_t vocabulary, formats::Json* config);

// Floating-point operations (2 for a multiply and add) of one prompt of `tokens` tokens from position 0 with the logits
// of its last token: projections, router, chosen experts, shared experts, attention, head. Norms, rotary embedding and
// activations are left out.
double prefill_flops(const model::ModelConfig& config, int64_t tokens);
// Bytes of keys and values that one token reads at that context length.
double kv_bytes_read(const model::ModelConfig& config, int64_t context, int64_t bytes_a_value);

}  // namespace quadrille::plan

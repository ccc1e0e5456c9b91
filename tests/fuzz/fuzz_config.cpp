// SPDX-License-Identifier: Apache-2.0
// Any bytes as config.json with a quantization_config: an error, or numbers inside their ranges and a decision for
// every module. The same bytes are read as generation_config.json too.
#include <cstdlib>
#include <string_view>

#include "formats/compressed_tensors.h"
#include "formats/hf_config.h"

namespace {

using namespace quadrille::formats;  // NOLINT(google-build-using-namespace)

void require(bool condition) {
  if (!condition) std::abort();
}

void check_config(const HfConfig& config) {
  require(config.hidden_size > 0 && config.num_hidden_layers > 0 && config.vocab_size > 0);
  require(config.num_attention_heads % config.num_key_value_heads == 0);
  require(config.rms_norm_eps > 0 && config.rms_norm_eps < 1);
  require(!config.num_experts || *config.num_experts > 0);
  require(!config.rope.theta || *config.rope.theta > 0);
}

void check_decisions(const Json& json) {
  const auto rules = QuantizationConfig::parse(json, "fuzz");
  if (!rules) return;
  for (const char* module : {"lm_head", "model.layers.0.mlp.gate", "model.layers.11.mlp.experts.7.down_proj",
                             "model.layers.0.self_attn.q_proj", ""}) {
    const auto decision = rules->decide(module);
    if (!decision) continue;
    const int64_t group = decision->group_size;
    require(group == 0 || group == 32 || group == 64 || group == 128);
    require(!decision->rule.empty());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto json = parse_json(text, "fuzz");
  if (!json) return 0;
  (void)parse_hf_generation_config(*json, "fuzz");
  const auto config = parse_hf_config(*json, "fuzz");
  if (config) check_config(*config);
  if (config && config->quantization_config) check_decisions(*config->quantization_config);
  // A quantization_config alone is an input too, so that it is reached without a whole model around it.
  check_decisions(*json);
  return 0;
}

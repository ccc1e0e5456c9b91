// SPDX-License-Identifier: Apache-2.0
// The plain fields of config.json as tables: key, member, legal range. Called by hf_config.cpp alone.
#include "formats/hf_config_fields.h"

namespace quadrille::formats {
namespace {

constexpr int64_t kMaxWidth = 1 << 24;
constexpr int64_t kMaxLayers = 10'000;
constexpr int64_t kMaxHeads = 1 << 16;
constexpr int64_t kMaxExperts = 1 << 16;
constexpr int64_t kMaxVocab = 1 << 28;
constexpr int64_t kMaxPosition = int64_t{1} << 31;
constexpr int64_t kMaxTokenId = (int64_t{1} << 31) - 1;

template <typename Value, typename Number>
struct Field {
  const char* key;
  Value HfConfig::*member;
  Number minimum;
  Number maximum;
};

using RequiredInt = Field<int64_t, int64_t>;
constexpr RequiredInt kRequiredInts[] = {
    {"hidden_size", &HfConfig::hidden_size, 1, kMaxWidth},
    {"num_hidden_layers", &HfConfig::num_hidden_layers, 1, kMaxLayers},
    {"num_attention_heads", &HfConfig::num_attention_heads, 1, kMaxHeads},
    {"vocab_size", &HfConfig::vocab_size, 1, kMaxVocab},
    {"max_position_embeddings", &HfConfig::max_position_embeddings, 1, kMaxPosition},
};

using OptionalInt = Field<std::optional<int64_t>, int64_t>;
constexpr OptionalInt kOptionalInts[] = {
    {"head_dim", &HfConfig::head_dim, 1, kMaxWidth},
    {"intermediate_size", &HfConfig::intermediate_size, 1, kMaxWidth},
    {"moe_intermediate_size", &HfConfig::moe_intermediate_size, 1, kMaxWidth},
    {"shared_expert_intermediate_size", &HfConfig::shared_expert_intermediate_size, 0, kMaxWidth},
    {"num_experts_per_tok", &HfConfig::num_experts_per_tok, 1, kMaxExperts},
    {"n_shared_experts", &HfConfig::n_shared_experts, 0, kMaxExperts},
    {"decoder_sparse_step", &HfConfig::decoder_sparse_step, 1, kMaxLayers},
    {"first_k_dense_replace", &HfConfig::first_k_dense_replace, 0, kMaxLayers},
    {"n_group", &HfConfig::n_group, 1, kMaxExperts},
    {"topk_group", &HfConfig::topk_group, 1, kMaxExperts},
    {"sliding_window", &HfConfig::sliding_window, 0, kMaxPosition},
    {"max_window_layers", &HfConfig::max_window_layers, 0, kMaxLayers},
    // -1 is how some files say "none".
    {"bos_token_id", &HfConfig::bos_token_id, -1, kMaxTokenId},
    {"pad_token_id", &HfConfig::pad_token_id, -1, kMaxTokenId},
};

using OptionalDouble = Field<std::optional<double>, double>;
constexpr OptionalDouble kOptionalDoubles[] = {
    {"routed_scaling_factor", &HfConfig::routed_scaling_factor, 1e-6, 1e6},
    {"clip_qkv", &HfConfig::clip_qkv, 1e-6, 1e30},
    {"attention_dropout", &HfConfig::attention_dropout, 0.0, 1.0},
};

struct BoolField {
  const char* key;
  std::optional<bool> HfConfig::*member;
};
constexpr BoolField kBools[] = {
    {"tie_word_embeddings", &HfConfig::tie_word_embeddings},
    {"norm_topk_prob", &HfConfig::norm_topk_prob},
    {"use_sliding_window", &HfConfig::use_sliding_window},
    {"attention_bias", &HfConfig::attention_bias},
    {"qkv_bias", &HfConfig::qkv_bias},
};

struct StringField {
  const char* key;
  std::optional<std::string> HfConfig::*member;
};
constexpr StringField kStrings[] = {
    {"scoring_func", &HfConfig::scoring_func},
    {"topk_method", &HfConfig::topk_method},
};

// Absent where the file says it by a number.
void drop(std::optional<int64_t>& field, int64_t none) {
  if (field == none) field.reset();
}

}  // namespace

Status read_plain_fields(const JsonObject& object, HfConfig& config) {
  for (const RequiredInt& field : kRequiredInts) {
    QD_TRY(config.*field.member, object.get_int(field.key, field.minimum, field.maximum));
  }
  for (const OptionalInt& field : kOptionalInts) {
    QD_TRY(config.*field.member, object.find_int(field.key, field.minimum, field.maximum));
  }
  for (const OptionalDouble& field : kOptionalDoubles) {
    QD_TRY(config.*field.member, object.find_double(field.key, field.minimum, field.maximum));
  }
  for (const BoolField& field : kBools) {
    QD_TRY(config.*field.member, object.find_bool(field.key));
  }
  for (const StringField& field : kStrings) {
    QD_TRY(config.*field.member, object.find_string(field.key));
  }
  QD_TRY(config.eos_token_id, object.find_int_or_list("eos_token_id", 0, kMaxTokenId));
  drop(config.sliding_window, 0);
  drop(config.bos_token_id, -1);
  drop(config.pad_token_id, -1);
  return {};
}

}  // namespace quadrille::formats

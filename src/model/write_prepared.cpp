// SPDX-License-Identifier: Apache-2.0
// Stores in memory -> sections.
#include <algorithm>

#include "core/check.h"
#include "model/prepared_sections.h"
#include "model/prepared_weights.h"

namespace quadrille::model {
namespace {

using formats::PreparedSection;
using formats::PreparedWriter;

moe::MatrixRef ref_at(const LinearStore& store, int64_t index) {
  const auto at = static_cast<size_t>(index);
  if (store.is_w4) return {&store.w4[at], nullptr, store.bias};
  return {nullptr, &store.bf16[at], store.bias};
}

class SectionWriter {
 public:
  SectionWriter(PreparedWriter* writer, int64_t layer) : writer_(*writer), layer_(layer) {}

  // Nothing where the model has no such vector.
  Status rows(const char* name, std::span<const uint16_t> values, int64_t n, int64_t expert = -1) {
    if (values.empty()) return {};
    begin(name, expert, form_of(rows_header(n, static_cast<int64_t>(values.size()) / n)));
    QD_TRY_STATUS(writer_.add(std::as_bytes(values)));
    writer_.end();
    return {};
  }

  Status matrix(const char* name, const LinearStore& store) {
    if (store.num_matrices() == 0) return {};
    const moe::MatrixRef ref = ref_at(store, 0);
    begin(name, -1, form_of(header_of(kind_of(ref))));
    Status status;
    moe::each_piece(ref, [&](std::span<const std::byte> piece) {
      if (status) status = writer_.add(piece);
    });
    QD_TRY_STATUS(status);
    writer_.end();
    return {};
  }

  Status expert(const MlpStore& store, int64_t index) {
    const moe::MatrixRef gate_up = ref_at(store.gate_up, index), down = ref_at(store.down, index);
    begin("expert", index, form_of(header_of(kind_of(gate_up)), header_of(kind_of(down))));
    QD_TRY_STATUS(writer_.add(moe::pack_expert({layer_, index, 0, 1}, gate_up, down)));
    writer_.end();
    return {};
  }

 private:
  void begin(const char* name, int64_t expert, const formats::SectionForm& form) {
    PreparedSection section;
    section.name = name;
    section.layer = layer_;
    section.expert = expert;
    section.form = form;
    writer_.begin(std::move(section));
  }

  PreparedWriter& writer_;
  int64_t layer_;
};

}  // namespace

std::string arithmetic_name(kernels::Numerics numerics) {
  return numerics == kernels::Numerics::kVllm ? "vllm" : "exact";
}

Status write_ends(const ModelWeights& weights, PreparedWriter* writer) {
  SectionWriter sections(writer, -1);
  const auto hidden = static_cast<int64_t>(weights.final_norm.size());
  const int64_t step = embedding_piece_rows(hidden);
  const auto vocabulary = static_cast<int64_t>(weights.embedding.size()) / hidden;
  for (int64_t row = 0; row < vocabulary; row += step) {
    const int64_t count = std::min(step, vocabulary - row);
    const auto piece = std::span(weights.embedding).subspan(row * hidden, count * hidden);
    QD_TRY_STATUS(sections.rows("embedding", piece, count, row / step));
  }
  QD_TRY_STATUS(sections.rows("final_norm", weights.final_norm, 1));
  return sections.matrix("lm_head", weights.lm_head);
}

Status write_layer(const LayerStore& layer, int64_t index, const ModelConfig& config, PreparedWriter* writer) {
  SectionWriter sections(writer, index);
  QD_TRY_STATUS(sections.rows("input_norm", layer.input_norm, 1));
  QD_TRY_STATUS(sections.rows("q_norm", layer.q_norm, 1));
  QD_TRY_STATUS(sections.rows("k_norm", layer.k_norm, 1));
  QD_TRY_STATUS(sections.matrix("q", layer.q));
  QD_TRY_STATUS(sections.matrix("k", layer.k));
  QD_TRY_STATUS(sections.matrix("v", layer.v));
  QD_TRY_STATUS(sections.matrix("o", layer.o));
  QD_TRY_STATUS(sections.rows("post_attention_norm", layer.post_attention_norm, 1));
  QD_TRY_STATUS(sections.rows("router", layer.router, config.router.num_experts));
  QD_TRY_STATUS(sections.rows("shared_gate", layer.shared_gate, 1));
  QD_TRY_STATUS(sections.matrix("shared_gate_up", layer.shared.gate_up));
  QD_TRY_STATUS(sections.matrix("shared_down", layer.shared.down));
  QD_TRY_STATUS(sections.matrix("dense_gate_up", layer.dense.gate_up));
  QD_TRY_STATUS(sections.matrix("dense_down", layer.dense.down));
  for (int64_t e = 0; e < layer.experts.gate_up.num_matrices(); ++e) {
    QD_TRY_STATUS(sections.expert(layer.experts, e));
  }
  return {};
}

}  // namespace quadrille::model

// SPDX-License-Identifier: Apache-2.0
// Sections -> stores. What a section must be follows from the config; the file says the rest (4-bit or bf16, groups).
#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "kernels/api/table.h"
#include "model/first_use.h"
#include "model/prepared_sections.h"
#include "model/prepared_weights.h"

namespace quadrille::model {
namespace {

using formats::PreparedFile;
using formats::PreparedSection;

constexpr const char* kMakeAgain = "make it again with 'quadrille prepare MODEL OUT' of this version";

struct Shape {
  int64_t n = 0, k = 0;
  bool has_bias = false;
};

bool is_same(const moe::MatrixHeader& a, const moe::MatrixHeader& b) {
  return std::memcmp(&a, &b, sizeof(a)) == 0;
}

class Reader {
 public:
  Reader(std::shared_ptr<const PreparedFile> file, const ModelConfig& config, const PreparedOptions& options)
      : file_(*file), config_(config), options_(options), first_use_(std::make_shared<FirstUse>(file, options.pool)) {}

  Result<PreparedWeights> read() {
    PreparedWeights result;
    QD_TRY_STATUS(choose_numerics());
    ModelWeights& weights = result.weights;
    QD_TRY_STATUS(read_ends(&weights));
    weights.layers.resize(config_.num_layers);
    for (int64_t l = 0; l < config_.num_layers; ++l) {
      layer_ = l;
      QD_TRY_STATUS(read_layer(&weights.layers[l]));
    }
    if (read_ != file_.sections().size()) {
      return make_error(ErrorCode::kInvalidData, "{}: expected {} sections, found {}; config.json is another model's",
                        file_.path(), read_, file_.sections().size());
    }
    weights.first_use = first_use_;
    result.numerics = numerics_;
    result.notes = file_.notes();
    return result;
  }

 private:
  Status choose_numerics() {
    const std::string& found = file_.head().arithmetic;
    if (found != "exact" && found != "vllm") {
      return make_error(ErrorCode::kUnsupported, "{}: expected scales of 'exact' or 'vllm', found '{}'; {}",
                        file_.path(), found, kMakeAgain);
    }
    numerics_ = found == "vllm" ? kernels::Numerics::kVllm : kernels::Numerics::kExact;
    if (!options_.numerics || *options_.numerics == numerics_) return {};
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: prepared for '--numerics {}', asked to run in '{}'; give '--numerics {}', or prepare the "
                      "checkpoint with '--numerics {}'",
                      file_.path(), found, arithmetic_name(*options_.numerics), found,
                      arithmetic_name(*options_.numerics));
  }

  std::string place(const PreparedSection& section) const { return file_.path() + ": section " + section.text(); }

  Result<const PreparedSection*> require(const char* name, int64_t layer, int64_t expert = -1) {
    const PreparedSection* section = file_.find(name, layer, expert);
    ++read_;
    if (section != nullptr) return section;
    PreparedSection wanted;
    wanted.name = name;
    wanted.layer = layer;
    wanted.expert = expert;
    return make_error(ErrorCode::kInvalidData, "{}: expected a section {}, found none; config.json is another model's",
                      file_.path(), wanted.text());
  }

  Error other_form(const PreparedSection& section, const moe::MatrixHeader& expected,
                   const moe::MatrixHeader& found) const {
    const bool is_layout = std::strcmp(expected.tag, found.tag) != 0 || expected.tag_version != found.tag_version;
    return make_error(is_layout ? ErrorCode::kUnsupported : ErrorCode::kInvalidData, "{}: expected {}, found {}; {}",
                      place(section), text_of(expected), text_of(found), kMakeAgain);
  }

  Status check_bytes(const PreparedSection& section, uint64_t expected) const {
    if (section.bytes == expected) return {};
    return make_error(ErrorCode::kInvalidData, "{}: expected {} bytes, found {}; {}", place(section), expected,
                      section.bytes, kMakeAgain);
  }

  // Which matrix the file has at that shape.
  Result<moe::MatrixKind> matrix_kind(const PreparedSection& section, size_t index, const Shape& shape) const {
    const moe::MatrixHeader found = header_in(section.form, index);
    const bool is_w4 = found.is_w4 == 1;
    const moe::MatrixKind kind{
        is_w4,         is_w4 ? numerics_ : kernels::Numerics::kExact, shape.n, shape.k, is_w4 ? found.group_size : 0,
        shape.has_bias};
    if (!is_same(found, header_of(kind))) return other_form(section, header_of(kind), found);
    if (is_w4) {
      if (auto legal = kernels::check_w4a8_shape(kind.n, kind.k, kind.group_size); !legal) {
        return legal.error().in(place(section));
      }
    }
    return kind;
  }

  Status check_rows(const PreparedSection& section, int64_t n, int64_t k) const {
    const moe::MatrixHeader found = header_in(section.form, 0), expected = rows_header(n, k);
    if (!is_same(found, expected)) return other_form(section, expected, found);
    return check_bytes(section, static_cast<uint64_t>(n * k) * sizeof(uint16_t));
  }

  std::span<const uint16_t> values(const PreparedSection& section) const {
    const auto bytes = file_.bytes(section);
    return {reinterpret_cast<const uint16_t*>(bytes.data()), bytes.size() / sizeof(uint16_t)};
  }

  // Small and read by every token: copied, and checked on the way.
  Status vector(const char* name, int64_t n, int64_t k, std::vector<uint16_t>* out, int64_t layer) {
    QD_TRY(const PreparedSection* section, require(name, layer));
    QD_TRY_STATUS(check_rows(*section, n, k));
    QD_TRY_STATUS(file_.check(*section));
    const auto from = values(*section);
    out->assign(from.begin(), from.end());
    return {};
  }
  Status vector(const char* name, int64_t n, int64_t k, std::vector<uint16_t>* out) {
    return vector(name, n, k, out, layer_);
  }

  static void put(moe::ExpertMatrix matrix, int64_t slot, LinearStore* store) {
    if (store->is_w4) {
      store->w4[slot] = std::get<prepare::PreparedW4>(std::move(matrix.weights));
    } else {
      store->bf16[slot] = std::get<prepare::PreparedBf16>(std::move(matrix.weights));
    }
  }

  static void shape_store(const moe::MatrixKind& kind, int64_t count, LinearStore* store) {
    store->n = kind.n;
    store->k = kind.k;
    store->group_size = kind.group_size;
    store->reserve(count, kind.is_w4);
  }

  Status matrix(const char* name, const Shape& shape, LinearStore* store) {
    QD_TRY(const PreparedSection* section, require(name, layer_));
    QD_TRY(const moe::MatrixKind kind, matrix_kind(*section, 0, shape));
    QD_TRY_STATUS(check_bytes(*section, run_bytes(kind)));
    if (shape.has_bias) QD_TRY_STATUS(file_.check(*section));
    shape_store(kind, 1, store);
    moe::ExpertMatrix view = moe::view_matrix(kind, file_.bytes(*section));
    store->bias = std::move(view.bias);
    put(std::move(view), 0, store);
    first_use_->add(*section);
    return {};
  }

  Status mlp(const char* gate_up, const char* down, int64_t width, MlpStore* store) {
    QD_TRY_STATUS(matrix(gate_up, {2 * width, config_.hidden_size}, &store->gate_up));
    QD_TRY_STATUS(matrix(down, {config_.hidden_size, width}, &store->down));
    store->width = width;
    return {};
  }

  Result<moe::ExpertKind> expert_kind(const PreparedSection& section) const {
    moe::ExpertKind kind;
    QD_TRY(kind.gate_up, matrix_kind(section, 0, {2 * config_.expert_width, config_.hidden_size}));
    QD_TRY(kind.down, matrix_kind(section, 1, {config_.hidden_size, config_.expert_width}));
    QD_TRY_STATUS(check_bytes(section, blob_bytes(kind)));
    return kind;
  }

  // Every expert of a layer is of one kind; the slots that this rank has are views of theirs.
  Status experts(LayerStore* layer) {
    std::vector<const PreparedSection*> sections;
    for (int64_t e = 0; e < config_.router.num_experts; ++e) {
      QD_TRY(const PreparedSection* section, require("expert", layer_, e));
      sections.push_back(section);
    }
    QD_TRY(const moe::ExpertKind kind, expert_kind(*sections[0]));
    for (const PreparedSection* section : sections) {
      QD_TRY(const moe::ExpertKind other, expert_kind(*section));
      if (other.gate_up == kind.gate_up && other.down == kind.down) continue;
      return other_form(*section, header_of(kind.gate_up), header_in(section->form, 0));
    }
    if (options_.placement != nullptr) sections = held(sections, layer);
    const auto count = static_cast<int64_t>(sections.size());
    shape_store(kind.gate_up, count, &layer->experts.gate_up);
    shape_store(kind.down, count, &layer->experts.down);
    layer->experts.width = config_.expert_width;
    for (int64_t slot = 0; slot < count; ++slot) {
      moe::Expert view = moe::view_expert(file_.bytes(*sections[slot]), kind);
      put(std::move(view.gate_up), slot, &layer->experts.gate_up);
      put(std::move(view.down), slot, &layer->experts.down);
    }
    moe::ExpertGuard* guard = first_use_->add_experts(std::move(sections));
    if (options_.placement == nullptr) layer->guard = guard;
    return {};
  }

  std::vector<const PreparedSection*> held(const std::vector<const PreparedSection*>& all, LayerStore* layer) const {
    layer->placement = *options_.placement;
    layer->expert_rank = options_.expert_rank;
    std::vector<const PreparedSection*> own;
    for (const int32_t expert : options_.placement->slots(options_.expert_rank)) own.push_back(all[expert]);
    return own;
  }

  Status attention(LayerStore* layer) {
    const int64_t hidden = config_.hidden_size, q = config_.q_width(), kv = config_.kv_width();
    QD_TRY_STATUS(matrix("q", {q, hidden, config_.qkv_bias}, &layer->q));
    QD_TRY_STATUS(matrix("k", {kv, hidden, config_.qkv_bias}, &layer->k));
    QD_TRY_STATUS(matrix("v", {kv, hidden, config_.qkv_bias}, &layer->v));
    QD_TRY_STATUS(matrix("o", {hidden, q, config_.o_bias}, &layer->o));
    if (config_.qk_norm == QkNorm::kNone) return {};
    const bool per_head = config_.qk_norm == QkNorm::kPerHead;
    QD_TRY_STATUS(vector("q_norm", 1, per_head ? config_.head_dim : q, &layer->q_norm));
    return vector("k_norm", 1, per_head ? config_.head_dim : kv, &layer->k_norm);
  }

  Status read_layer(LayerStore* layer) {
    const int64_t hidden = config_.hidden_size;
    QD_TRY_STATUS(vector("input_norm", 1, hidden, &layer->input_norm));
    QD_TRY_STATUS(vector("post_attention_norm", 1, hidden, &layer->post_attention_norm));
    QD_TRY_STATUS(attention(layer));
    if (!config_.layers[layer_].is_moe) {
      return mlp("dense_gate_up", "dense_down", config_.dense_width, &layer->dense);
    }
    QD_TRY_STATUS(vector("router", config_.router.num_experts, hidden, &layer->router));
    QD_TRY_STATUS(experts(layer));
    if (config_.shared_width == 0) return {};
    QD_TRY_STATUS(mlp("shared_gate_up", "shared_down", config_.shared_width, &layer->shared));
    if (!config_.shared_has_gate) return {};
    return vector("shared_gate", 1, hidden, &layer->shared_gate);
  }

  // The pieces lie end to end: together they are the table.
  Status read_embedding(ModelWeights* weights) {
    const int64_t hidden = config_.hidden_size, step = embedding_piece_rows(hidden);
    std::vector<const PreparedSection*> pieces;
    for (int64_t row = 0; row < config_.vocab_size; row += step) {
      QD_TRY(const PreparedSection* piece, require("embedding", -1, row / step));
      QD_TRY_STATUS(check_rows(*piece, std::min(step, config_.vocab_size - row), hidden));
      pieces.push_back(piece);
      const uint64_t expected = pieces[0]->offset + static_cast<uint64_t>(row * hidden) * sizeof(uint16_t);
      if (piece->offset == expected) continue;
      return make_error(ErrorCode::kInvalidData, "{}: expected at {}, found at {}; {}", place(*piece), expected,
                        piece->offset, kMakeAgain);
    }
    weights->mapped_embedding = {values(*pieces[0]).data(), static_cast<size_t>(config_.vocab_size * hidden)};
    first_use_->set_embedding(std::move(pieces), step);
    return {};
  }

  Status read_ends(ModelWeights* weights) {
    if (!config_.tie_word_embeddings) QD_TRY_STATUS(read_embedding(weights));
    QD_TRY_STATUS(vector("final_norm", 1, config_.hidden_size, &weights->final_norm, -1));
    layer_ = -1;
    QD_TRY_STATUS(matrix("lm_head", {config_.vocab_size, config_.hidden_size}, &weights->lm_head));
    if (!config_.tie_word_embeddings || !weights->lm_head.is_w4) return {};
    return make_error(ErrorCode::kUnsupported, "{}: a 4-bit lm_head is no embedding; {}", file_.path(), kMakeAgain);
  }

  const PreparedFile& file_;
  const ModelConfig& config_;
  const PreparedOptions& options_;
  std::shared_ptr<FirstUse> first_use_;  // keeps the file
  kernels::Numerics numerics_ = kernels::Numerics::kExact;
  int64_t layer_ = -1;
  size_t read_ = 0;
};

std::string file_of(const std::string& folder) {
  return folder + "/" + formats::kPreparedFileName;
}

}  // namespace

Result<PreparedWeights> load_prepared(const std::string& folder, const ModelConfig& config,
                                      const PreparedOptions& options) {
  QD_TRY(std::shared_ptr<const PreparedFile> file, PreparedFile::open(file_of(folder)));
  return Reader(std::move(file), config, options).read();
}

Result<PreparedCheck> check_prepared(const std::string& folder, const ModelConfig& config, ThreadPool* pool) {
  PreparedOptions options;
  options.pool = pool;
  QD_TRY(const PreparedWeights loaded, load_prepared(folder, config, options));
  const PreparedFile& file = loaded.weights.first_use->file();
  QD_TRY_STATUS(file.check_gaps());
  QD_TRY_STATUS(loaded.weights.first_use->check_all());
  PreparedCheck done;
  for (const PreparedSection& section : file.sections()) {
    done.bytes += section.bytes;
    ++done.sections;
  }
  return done;
}

}  // namespace quadrille::model

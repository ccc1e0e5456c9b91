// SPDX-License-Identifier: Apache-2.0
// The order of a step. A residual sum is made where the next norm reads it: each norm takes the update of the part
// before it.
#include "model/device_decoder.h"

#include <cmath>

#include "core/check.h"
#include "layout/kv_tile.h"
#include "model/device_columns.h"
#include "model/device_observe.h"
#include "moe/device_steps.h"
#include "numerics/bf16.h"

namespace quadrille::model {
namespace {

kernels::HeadNorm head_norm(QkNorm norm) {
  switch (norm) {
    case QkNorm::kPerHead:
      return kernels::HeadNorm::kPerHead;
    case QkNorm::kWholeProjection:
      return kernels::HeadNorm::kWholeProjection;
    case QkNorm::kNone:
      break;
  }
  return kernels::HeadNorm::kNone;
}

}  // namespace

DeviceDecoder::DeviceDecoder(const ModelConfig& config, const DeviceWeightsView& weights,
                             const kernels::DeviceTable& table, kernels::Numerics numerics, const StepMemory& parts,
                             const DeviceDecoderMemory& memory, const moe::DeviceStreams& streams, DeviceShard shard,
                             const moe::DeviceRanks& ranks, bool joins_steps)
    : config_(config),
      weights_(weights),
      table_(table),
      numerics_(numerics),
      shard_(std::move(shard)),
      ranks_(ranks),
      parts_(parts),
      memory_(memory.workspace),
      given_(memory),
      streams_(streams),
      stream_(streams.main),
      joins_steps_(joins_steps) {}

Status DeviceDecoder::clear_counters(device::Stream stream) const {
  QD_TRY_STATUS(device::fill(memory_.at<uint32_t>(parts_.router_arrivals), 0, parts_.router_arrivals.bytes, stream));
  return device::fill(memory_.at<int32_t>(parts_.attention_counters), 0, parts_.attention_counters.bytes, stream);
}

int64_t DeviceDecoder::tile_tokens() const {
  return kernels::attention_tile_tokens(config_.num_heads / config_.num_kv_heads, config_.head_dim);
}

// Of ranks each gives the rows of its vocabulary and -0 elsewhere.
Status DeviceDecoder::enqueue_embedding(const StepShape& shape) {
  const layout::Range held = shard_.vocabulary(config_.vocab_size)[static_cast<size_t>(shard_.rank)];
  kernels::DeviceEmbed embed;
  embed.num_tokens = shape.num_tokens;
  embed.width = config_.hidden_size;
  embed.first_row = held.begin;
  embed.num_rows = held.size();
  embed.ids = ints(block_of(shape).ids);
  embed.table = weights_.embedding;
  auto* const x = memory_.open<uint16_t>(parts_.x, stream_);
  if (!shard_.is_split()) {
    embed.out = x;
  } else {
    embed.out_f32 = memory_.open<float>(parts_.partial, stream_);
  }
  device::before_step("embed", stream_);
  table_.embed(embed, stream_);
  if (!shard_.is_split()) return {};
  return moe::enqueue_sum(table_, ranks_, embed.out_f32, shape.num_tokens * embed.width, x, stream_);
}

Status DeviceDecoder::enqueue_layers(const StepShape& shape, StepObserver* observer) {
  observer_ = observer;
  const Status done = enqueue_blocks(shape);
  observer_ = nullptr;
  return done;
}

Status DeviceDecoder::enqueue_blocks(const StepShape& shape) {
  layer_ = -1;
  stream_is_moved_ = false;
  QD_TRY_STATUS(enqueue_embedding(shape));
  QD_TRY_STATUS(show_update(Module::kEmbedding, stream_rows(), shape.num_tokens));
  update_is_pending_ = false;
  pending_combine_ = {};
  for (layer_ = 0; layer_ < config_.num_layers; ++layer_) {
    QD_TRY_STATUS(enqueue_block(layer_, shape));
    update_is_pending_ = true;
    QD_TRY_STATUS(show_update(Module::kFeedForward, memory_.at<uint16_t>(parts_.update), shape.num_tokens));
    QD_TRY_STATUS(show_hidden(shape));
  }
  return {};
}

// x += attention(norm(x)); the feed-forward's rows stay in `update`, or where its experts left them, for the next norm.
Status DeviceDecoder::enqueue_block(int64_t layer, const StepShape& shape) {
  const DeviceLayerView& weights = weights_.layers[static_cast<size_t>(layer)];
  const int64_t tokens = shape.num_tokens;
  QD_TRY_STATUS(enqueue_qkv(weights, shape));
  QD_TRY_STATUS(show_projections(tokens));
  QD_TRY_STATUS(enqueue_attention(layer, shape));
  auto* const update = memory_.open<uint16_t>(parts_.update, stream_);
  QD_TRY_STATUS(enqueue_o(layer, shape, update));
  QD_TRY_STATUS(show_update(Module::kAttention, update, tokens));
  const bool dense_w4 = weights.dense && weights.dense->is_w4();
  FeedForwardForm form;
  form.has_codes = dense_w4 || feed_forward_takes_codes(weights);
  form.leaves_combine = observer_ == nullptr && !shard_.is_split();
  const bool is_with_router = norms_with_router(weights, tokens);
  form.has_codes = form.has_codes || is_with_router || takes_gathered_codes(weights, tokens);
  kernels::DeviceAddNorm norm = open_norm(shape, weights.post_attention_norm, true, form.has_codes, !dense_w4);
  if (is_with_router) {
    move_stream(&norm);
    form.norm = &norm;
  } else {
    enqueue_norm(norm);
  }
  QD_TRY_STATUS(enqueue_feed_forward(layer, tokens, form));
  return weights.is_moe() ? show_moe_block(tokens) : Status();
}

Status DeviceDecoder::enqueue_row_parallel(Module module, const DeviceMatrix& matrix, const moe::DeviceSplitRows& rows,
                                           uint16_t* out) {
  if (matrix.shape.is_w4) {
    DeviceStages stages(observer_, layer_, module);
    moe::DeviceLayerOptions options;
    options.observer = stages.get();
    return moe::run_row_parallel_linear(table_, matrix.w4, rows, ranks_, out, memory_.at<void>(parts_.row_parallel),
                                        parts_.row_parallel.bytes, stream_, options);
  }
  const bool is_attention = module == Module::kAttention;
  if (is_attention) QD_TRY_STATUS(show_rows(module, "x", rows.x, rows.num_rows, rows.held));
  auto* const partial = memory_.open<float>(parts_.partial, stream_);
  DeviceMatrix own = matrix;
  if (!ranks_.adds_bias()) own.bias = nullptr;
  QD_TRY_STATUS(enqueue_linear(own, {rows.num_rows, rows.x, nullptr, nullptr},
                               {kernels::GemmOutput::kRowsF32, partial, matrix.shape.n}));
  if (!is_attention) QD_TRY_STATUS(show_partial_rows(module, partial, rows.num_rows));
  return moe::enqueue_sum(table_, ranks_, partial, rows.num_rows * matrix.shape.n, out, stream_);
}

// A norm over the whole projection takes the mean over all ranks' columns, in the order of one rank.
Status DeviceDecoder::gather_whole_rows(const StepShape& shape, kernels::DeviceQkv* heads) {
  const auto gather = [&](int64_t first_column, int64_t width, const std::vector<layout::Range>& ranges,
                          const moe::Part& whole) -> Status {
    ColumnGather columns;
    columns.num_rows = shape.num_tokens;
    columns.element_bytes = sizeof(uint16_t);
    columns.ranges = ranges;
    auto* const mine = memory_.open<uint16_t>(parts_.own_columns, stream_);
    device::RowCopy copy;
    copy.to = mine;
    copy.to_pitch = copy.row_bytes = sizeof(uint16_t) * static_cast<size_t>(width);
    copy.from = heads->qkv + first_column;
    copy.from_pitch = sizeof(uint16_t) * static_cast<size_t>(heads->qkv_pitch);
    copy.rows = static_cast<size_t>(shape.num_tokens);
    QD_TRY_STATUS(device::copy_rows_on_device(copy, stream_));
    columns.mine = mine;
    columns.gathered = memory_.open<uint8_t>(parts_.gathered, stream_);
    columns.whole = memory_.open<uint16_t>(whole, stream_);
    columns.whole_pitch = ranges.back().end;
    return gather_columns(columns, *ranks_.tensor, stream_);
  };
  const std::vector<layout::Range> q = shard_.q_rows(0), kv = shard_.kv_rows(0);
  QD_TRY_STATUS(gather(0, config_.q_width(), q, parts_.whole_q));
  QD_TRY_STATUS(gather(config_.q_width(), config_.kv_width(), kv, parts_.whole_k));
  heads->whole_q = memory_.at<uint16_t>(parts_.whole_q);
  heads->whole_k = memory_.at<uint16_t>(parts_.whole_k);
  heads->whole_q_width = q.back().end;
  heads->whole_k_width = kv.back().end;
  return {};
}

Status DeviceDecoder::enqueue_attention(int64_t layer, const StepShape& shape) {
  const DeviceLayerView& weights = weights_.layers[static_cast<size_t>(layer)];
  const StepBlock block = block_of(shape);
  const layout::KvTile tile{config_.num_kv_heads, config_.head_dim};
  kernels::DeviceQkv heads;
  heads.num_tokens = shape.num_tokens;
  heads.num_heads = config_.num_heads;
  heads.pages.data = given_.pages + layer * given_.num_pages * tile.page_size();
  heads.pages.table = ints(block.page_table);
  heads.pages.table_stride = shape.max_context / kPagePositions;
  heads.pages.num_kv_heads = config_.num_kv_heads;
  heads.pages.head_dim = config_.head_dim;
  heads.qkv = memory_.at<uint16_t>(parts_.qkv);
  heads.qkv_pitch = config_.q_width() + 2 * config_.kv_width();
  heads.norm = head_norm(config_.qk_norm);
  heads.eps = static_cast<float>(config_.rms_norm_eps);
  heads.q_norm = weights.q_norm;
  heads.k_norm = weights.k_norm;
  if (config_.clip_qkv) heads.clip = numerics::round_to_bf16(static_cast<float>(*config_.clip_qkv));
  heads.rotary_dim = config_.head_dim;
  heads.cos = given_.cos;
  heads.sin = given_.sin;
  heads.position = ints(block.positions);
  heads.sequence = ints(block.sequences);
  heads.q = memory_.open<uint16_t>(parts_.q, stream_);
  if (shard_.is_split() && config_.qk_norm == QkNorm::kWholeProjection) {
    QD_TRY_STATUS(gather_whole_rows(shape, &heads));
  }
  kernels::DeviceAttention attention;
  if (joins_steps_ && shape.every_token_alone && observer_ == nullptr) {
    attention.projection = heads;
  } else {
    device::before_step("split_heads", stream_);
    table_.split_heads(heads, stream_);
  }
  attention.num_heads = config_.num_heads;
  attention.heads_per_kv = config_.num_heads / config_.num_kv_heads;
  attention.window = config_.layers[static_cast<size_t>(layer)].window;
  attention.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim)));
  attention.pages = heads.pages;
  attention.q = heads.q;
  attention.position = heads.position;
  attention.sequence = heads.sequence;
  attention.out = memory_.open<uint16_t>(parts_.mixed, stream_);
  attention.num_singles = shape.num_singles;
  attention.num_tiles = shape.num_tiles;
  if (!shape.every_token_alone) {
    attention.singles = ints(block.singles);
    attention.tiles = reinterpret_cast<const kernels::QueryTile*>(ints(block.tiles));
  }
  attention.max_context = shape.max_context;
  attention.workspace = memory_.open<float>(parts_.attention, stream_);
  attention.workspace_floats = static_cast<int64_t>(parts_.attention.bytes / sizeof(float));
  attention.counters = memory_.at<int32_t>(parts_.attention_counters);
  if (attention_quantises(layer, shape)) {
    attention.act = memory_.open<uint8_t>(parts_.mixed_act, stream_);
    attention.act_pitch = moe::act_pitch(config_.q_width());
    attention.act_scale = memory_.open<float>(parts_.mixed_scale, stream_);
  }
  device::before_step("attention", stream_);
  table_.attention(attention, stream_);
  return {};
}

kernels::DeviceAddNorm DeviceDecoder::open_norm(const StepShape& shape, const uint16_t* weight, bool has_update,
                                                bool quantised, bool plain) {
  kernels::DeviceAddNorm norm;
  norm.num_rows = shape.num_tokens;
  norm.width = config_.hidden_size;
  norm.eps = static_cast<float>(config_.rms_norm_eps);
  norm.x = stream_rows();
  if (has_update) {
    norm.combine = pending_combine_;
    norm.routes_are_older = true;  // a product lies between
    if (norm.combine.rows == nullptr) norm.update = memory_.at<uint16_t>(parts_.update);
    pending_combine_ = {};
  }
  norm.weight = weight;
  if (weight != nullptr && plain) norm.normed = memory_.open<uint16_t>(parts_.normed, stream_);
  if (weight != nullptr && quantised) {
    norm.act = memory_.open<uint8_t>(parts_.act, stream_);
    norm.act_pitch = moe::act_pitch(norm.width);
    norm.act_scale = memory_.open<float>(parts_.act_scale, stream_);
  }
  return norm;
}

void DeviceDecoder::move_stream(kernels::DeviceAddNorm* norm) {
  stream_is_moved_ = !stream_is_moved_;
  norm->x_out = memory_.open<uint16_t>(stream_is_moved_ ? parts_.other_x : parts_.x, stream_);
}

void DeviceDecoder::enqueue_norm(const kernels::DeviceAddNorm& norm) {
  device::before_step("add_norm", stream_);
  table_.add_norm(norm, stream_);
}

DeviceDecoder::Input DeviceDecoder::normed_input(int64_t num_rows) const {
  return {num_rows, memory_.at<uint16_t>(parts_.normed), memory_.at<uint8_t>(parts_.act),
          memory_.at<float>(parts_.act_scale)};
}

Status DeviceDecoder::enqueue_quantise(Module module, const uint16_t* x, int64_t num_rows, int64_t k, uint8_t* act,
                                       float* act_scale) {
  kernels::QuantizeTokens quantize;
  quantize.num_tokens = num_rows;
  quantize.k = k;
  quantize.act_pitch = moe::act_pitch(k);
  quantize.x = x;
  quantize.act = act;
  quantize.act_scale = act_scale;
  device::before_step("quantize_tokens", stream_);
  table_.quantize_tokens(quantize, stream_);
  return show_quantised(module, quantize);
}

Status DeviceDecoder::enqueue_linear(const DeviceMatrix& matrix, const Input& input, const Output& output) {
  if (matrix.shape.is_w4) {
    QD_TRY(const int32_t config, moe::choose_config(table_, matrix.w4, input.num_rows, -1));
    kernels::DeviceW4A8Gemm gemm = moe::gemm_of(matrix.w4, moe::single_list(input.num_rows), config);
    gemm.act = input.act;
    gemm.act_rows = input.num_rows;
    gemm.act_pitch = moe::act_pitch(matrix.shape.k);
    gemm.act_scale = input.act_scale;
    if (input.act == nullptr) gemm.x = input.x;
    gemm.output = output.form;
    gemm.out = output.out;
    gemm.out_pitch = output.pitch;
    device::before_step("gemm", stream_);
    table_.w4a8_gemm(gemm, stream_);
    return {};
  }
  kernels::DeviceBf16Gemm gemm;
  gemm.n = matrix.shape.n;
  gemm.k = matrix.shape.k;
  gemm.list = moe::single_list(input.num_rows);
  gemm.weights = matrix.bf16;
  gemm.expert_stride = matrix.shape.n * matrix.shape.k;
  gemm.bias = matrix.bias;
  gemm.x = input.x;
  gemm.x_pitch = matrix.shape.k;
  gemm.output = output.form;
  gemm.numerics = numerics_;
  gemm.out = output.out;
  gemm.out_pitch = output.pitch;
  device::before_step("bf16_gemm", stream_);
  table_.bf16_gemm(gemm, stream_);
  return {};
}

}  // namespace quadrille::model

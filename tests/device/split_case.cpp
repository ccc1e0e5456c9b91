// SPDX-License-Identifier: Apache-2.0
// Cuts the same matrices for both sides with the shard plan and src/prepare/shard.h.
#include "device/split_case.h"

#include <algorithm>

#include "device/random_data.h"
#include "kernels/api/registry.h"
#include "parallel/thread_group.h"
#include "prepare/device_prepare.h"
#include "prepare/shard.h"

namespace quadrille::testing {
namespace {

using prepare::CanonicalW4;

std::vector<float> part_of(const std::vector<float>& values, layout::Range range) {
  if (values.empty()) return {};
  return {values.begin() + range.begin, values.begin() + range.end};
}

template <typename T>
std::vector<T> copy_from(const void* data, int64_t count) {
  const auto* values = static_cast<const T*>(data);
  return {values, values + count};
}

}  // namespace

std::vector<layout::Range> SplitSpec::cut(int64_t whole) const {
  const layout::KFormat format{whole, true, group};
  if (width_unit != 0) return must(layout::cut_in_units(whole, width_unit, ranks, "test width"));
  return must(layout::cut_width(whole, format.k_align(), ranks, "test width"));
}

kernels::ActivationRule SplitSpec::rule() const {
  kernels::ActivationRule rule;
  rule.kind = activation;
  if (activation != kernels::Activation::kClampedSwiglu) return rule;
  rule.alpha = 1.702f;
  rule.limit = 7.0f;
  rule.up_offset = 1.0f;
  return rule;
}

SplitMatrix::SplitMatrix(int64_t rows, int64_t columns, int64_t group_size, bool with_bias, uint64_t seed,
                         int64_t expert, int matrix)
    : n(rows), k(columns), group(group_size) {
  packed.resize(static_cast<size_t>(n * k / 8));
  scales.resize(static_cast<size_t>(n * (group == 0 ? 1 : k / group)));
  bias.resize(with_bias ? static_cast<size_t>(n) : 0);
  const auto seed_of = [&](Part part) { return matrix_seed(seed, expert, matrix, part); };
  for (size_t i = 0; i < packed.size(); ++i) packed[i] = code_word(seed_of(Part::kCodes), static_cast<int64_t>(i));
  for (size_t i = 0; i < scales.size(); ++i) scales[i] = scale_bits(seed_of(Part::kScales), static_cast<int64_t>(i));
  for (size_t i = 0; i < bias.size(); ++i) bias[i] = small_number(seed_of(Part::kBias), static_cast<int64_t>(i));
}

CanonicalW4 SplitMatrix::view() const {
  CanonicalW4 matrix;
  matrix.n = n;
  matrix.k = k;
  matrix.group_size = group;
  matrix.packed = packed.data();
  matrix.scales = scales.data();
  return matrix;
}

void CpuShard::add(prepare::PreparedW4 matrix, std::vector<float> with_bias) {
  matrices.push_back(std::move(matrix));
  if (!with_bias.empty()) bias.push_back(std::move(with_bias));
}

moe::W4Linear CpuShard::finish(int64_t n, int64_t k, int64_t group) {
  for (const auto& matrix : matrices) views.push_back(matrix.view());
  for (const auto& values : bias) bias_views.push_back(values.data());
  return {static_cast<int64_t>(matrices.size()), n, k, group, views.data(), bias.empty() ? nullptr : bias_views.data()};
}

SplitMlp::SplitMlp(const SplitSpec& spec, int64_t experts, int64_t width, int64_t first_expert)
    : spec_(spec), width_(width) {
  const int parts = spec.rule().gated() ? 2 : 1;
  for (int64_t e = first_expert; e < first_expert + experts; ++e) {
    auto& up = up_.emplace_back();
    for (int part = 0; part < parts; ++part) {
      up.emplace_back(width, spec.hidden, spec.group, spec.bias, spec.seed, e, kGate + part);
    }
    down_.emplace_back(spec.hidden, width, spec.group, spec.bias, spec.seed, e, kDown);
  }
}

layout::KShard SplitMlp::shard(int rank) const {
  return layout::k_shard({width_, true, spec_.group}, spec_.cut(width_)[static_cast<size_t>(rank)]);
}

CpuMlpShard SplitMlp::on_cpu(int rank) const {
  const layout::KShard cut = shard(rank);
  const layout::Range columns{cut.k_begin, cut.k_end};
  CpuMlpShard out;
  for (size_t e = 0; e < down_.size(); ++e) {
    std::vector<CanonicalW4> parts;
    std::vector<float> bias;
    for (const SplitMatrix& matrix : up_[e]) {
      parts.push_back(prepare::column_parallel_shard(matrix.view(), columns));
      const auto own = part_of(matrix.bias, columns);
      bias.insert(bias.end(), own.begin(), own.end());
    }
    out.gate_up.add(must(prepare::prepare_w4(parts, spec_.numerics, nullptr)), bias);
    const auto down = must(prepare::row_parallel_shard(down_[e].view(), cut, prepare::ChannelScale::kWholeRow));
    out.down.add(must(prepare::prepare_w4(down.view(), spec_.numerics)), down_[e].bias);
  }
  const int64_t parts = spec_.rule().gated() ? 2 : 1;
  out.mlp.hidden = spec_.hidden;
  out.mlp.width = columns.size();
  out.mlp.activation = spec_.rule();
  out.mlp.gate_up = out.gate_up.finish(parts * columns.size(), spec_.hidden, spec_.group);
  out.mlp.down = out.down.finish(spec_.hidden, cut.k(), spec_.group);
  out.mlp.down_offset = cut.k_offset();
  out.mlp.down_k = cut.k();
  return out;
}

moe::DeviceLinear prepare_shards(const kernels::DeviceTable& table,
                                 const std::vector<std::vector<CanonicalW4>>& experts,
                                 const std::vector<std::vector<std::vector<float>>>& bias, kernels::Numerics numerics,
                                 Memory* memory, device::Stream stream) {
  const CanonicalW4& first = experts[0][0];
  const std::unique_ptr<Memory> temporary = memory->another();
  std::vector<prepare::DeviceW4Expert> sources(experts.size());
  for (size_t e = 0; e < experts.size(); ++e) {
    for (size_t part = 0; part < experts[e].size(); ++part) {
      const CanonicalW4& m = experts[e][part];
      const int64_t groups = m.group_size == 0 ? 1 : (m.k + m.group_size - 1) / m.group_size;
      sources[e].codes[part] = temporary->copy_of(copy_from<uint32_t>(m.packed, m.n * m.k / 8), stream);
      sources[e].scales[part] = temporary->copy_of(copy_from<uint16_t>(m.scales, m.n * groups), stream);
      if (!bias[e][part].empty()) sources[e].bias[part] = temporary->copy_of(bias[e][part], stream);
      if (m.row_absmax != nullptr) {
        sources[e].row_absmax = temporary->copy_of(copy_from<float>(m.row_absmax, m.n), stream);
      }
    }
  }
  prepare::DeviceW4Source source;
  source.numerics = numerics;
  source.part_n = first.n;
  source.num_parts = static_cast<int32_t>(experts[0].size());
  source.k = first.k;
  source.group_size = first.group_size;
  source.experts = sources;
  const prepare::DeviceW4Sizes sizes = must(prepare::device_w4_sizes(source));
  const auto floats = [&](size_t bytes) -> float* {
    return bytes == 0 ? nullptr : memory->take<float>(static_cast<int64_t>(bytes / sizeof(float)), 16, stream);
  };
  prepare::DeviceW4Destination destination;
  destination.weights = memory->take<uint8_t>(static_cast<int64_t>(sizes.weight_bytes), 128, stream);
  destination.channel_scale = floats(sizes.channel_scale_bytes);
  destination.bias = floats(sizes.bias_bytes);
  auto* status = temporary->take<uint32_t>(1, 4, stream, 0);
  const device::OwnedEvent done = must(device::OwnedEvent::create());
  prepare::PrepareStreams streams;
  streams.prepare = stream;
  streams.done = done.get();
  must(prepare::prepare_on_device(table, source, destination, nullptr, streams, status));
  const uint32_t bits = on_host<uint32_t>(status, 1, stream)[0];
  if (bits != 0) throw std::runtime_error(fmt::format("preparation left status {:#x}", bits));

  moe::DeviceLinear linear;
  linear.num_experts = static_cast<int64_t>(experts.size());
  linear.n = first.n * source.num_parts;
  linear.k = first.k;
  linear.group_size = first.group_size;
  linear.numerics = numerics;
  linear.weights = destination.weights;
  linear.expert_stride = sizes.expert_stride;
  linear.channel_scale = destination.channel_scale;
  linear.bias = destination.bias;
  return linear;
}

moe::DeviceMlp SplitMlp::on_device(const kernels::DeviceTable& table, int rank, Memory* memory,
                                   device::Stream stream) const {
  const layout::KShard cut = shard(rank);
  const layout::Range columns{cut.k_begin, cut.k_end};
  std::vector<std::vector<CanonicalW4>> up, down;
  std::vector<std::vector<std::vector<float>>> up_bias, down_bias;
  std::vector<prepare::OwnedW4> owned;
  owned.reserve(down_.size());
  for (size_t e = 0; e < down_.size(); ++e) {
    up.emplace_back();
    up_bias.emplace_back();
    for (const SplitMatrix& matrix : up_[e]) {
      up.back().push_back(prepare::column_parallel_shard(matrix.view(), columns));
      up_bias.back().push_back(part_of(matrix.bias, columns));
    }
    owned.push_back(must(prepare::row_parallel_shard(down_[e].view(), cut, prepare::ChannelScale::kWholeRow)));
    down.push_back({owned.back().view()});
    down_bias.push_back({down_[e].bias});
  }
  moe::DeviceMlp mlp;
  mlp.hidden = spec_.hidden;
  mlp.width = columns.size();
  mlp.activation = spec_.rule();
  mlp.gate_up = prepare_shards(table, up, up_bias, spec_.numerics, memory, stream);
  mlp.down = prepare_shards(table, down, down_bias, spec_.numerics, memory, stream);
  mlp.down_offset = cut.k_offset();
  return mlp;
}

SplitCase::SplitCase(const SplitSpec& spec) : spec_(spec), experts_(spec, spec.experts, spec.width, 0) {
  if (spec.shared_width != 0) shared_.emplace(spec, 1, spec.shared_width, kSharedExpert);
  if (spec.shared_gate) {
    for (int64_t i = 0; i < spec.hidden; ++i) gate_.push_back(small_weight_bits(hash(spec.seed, 15), i));
  }
  for (int64_t i = 0; i < spec.tokens * spec.hidden; ++i) {
    x_.push_back(activation_bits(spec.seed, i / spec.hidden, i % spec.hidden, spec.hidden, spec.nonfinite));
  }
  const auto experts = static_cast<uint64_t>(spec.experts);
  for (int64_t t = 0; t < spec.tokens; ++t) {
    const uint64_t first = hash(spec.seed, 7000 + static_cast<uint64_t>(t));
    for (int64_t j = 0; j < spec.top_k; ++j) {
      // Token 1 goes nowhere; of the others a route in eight.
      const bool nowhere = t == 1 || (hash(first, static_cast<uint64_t>(j)) >> 20) % 8 == 0;
      ids_.push_back(nowhere ? -1 : static_cast<int32_t>((first + static_cast<uint64_t>(j)) % experts));
      weights_.push_back(0.25f + small_number(spec.seed + 1, t * spec.top_k + j) * 0.25f);
    }
  }
}

void SplitCase::make_rank(const kernels::DeviceTable& table, int rank, device::Stream stream, SplitRank* out) const {
  Memory* memory = &out->memory;
  out->layer.rule.num_experts = spec_.experts;
  out->layer.rule.top_k = spec_.top_k;
  out->layer.rule.weight_on_input = spec_.weight_on_input;
  out->layer.experts = experts_.on_device(table, rank, memory, stream);
  if (shared_) out->layer.shared = shared_->on_device(table, rank, memory, stream);
  const auto rows_of = [&](const std::vector<uint16_t>& values) {
    auto* rows = memory->take<uint16_t>(static_cast<int64_t>(values.size()), 16, stream);
    must(device::copy_to_device(rows, values.data(), values.size() * sizeof(uint16_t), stream));
    must(device::synchronize(stream));
    return rows;
  };
  if (!gate_.empty()) out->layer.shared_gate_weight = rows_of(gate_);
  out->layer.ranks.split_scale = spec_.scale;
  out->batch.num_tokens = spec_.tokens;
  if (spec_.tokens == 0) return;
  out->batch.x = rows_of(x_);
  out->batch.topk_ids = memory->copy_of(ids_, stream);
  out->batch.topk_weights = memory->copy_of(weights_, stream);
  out->batch.out = memory->take<uint16_t>(spec_.tokens * spec_.hidden, 16, stream);
}

std::vector<uint16_t> SplitCase::expected() const {
  std::vector<float> x;
  for (const uint16_t bits : x_) x.push_back(numerics::bf16_to_f32(bits));
  std::vector<std::vector<float>> out(static_cast<size_t>(spec_.ranks), std::vector<float>(x.size()));
  must(parallel::run_rank_threads(spec_.ranks, [&](parallel::Communicator& communicator) -> Status {
    ThreadPool pool(4);
    Arena scratch;
    moe::Execution execution;
    QD_TRY(execution.table, kernels::select_table("hopper"));
    execution.kernels = {&pool, &scratch};
    execution.numerics = spec_.numerics;
    execution.ranks = &communicator;
    execution.split_scale = spec_.scale;
    const CpuMlpShard experts = experts_.on_cpu(communicator.rank());
    std::optional<CpuMlpShard> shared;
    if (shared_) shared.emplace(shared_->on_cpu(communicator.rank()));
    moe::MoeLayer layer;
    layer.rule.num_experts = spec_.experts;
    layer.rule.top_k = spec_.top_k;
    layer.rule.weight_on_input = spec_.weight_on_input;
    layer.experts = experts.mlp;
    if (shared) layer.shared = shared->mlp;
    if (!gate_.empty()) layer.shared_gate_weight = gate_.data();
    QD_TRY_STATUS(moe::check_layer(layer));
    return moe::run_layer(layer, x.data(), spec_.tokens, {ids_.data(), weights_.data()}, execution,
                          out[static_cast<size_t>(communicator.rank())].data());
  }));
  std::vector<uint16_t> codes;
  for (const float value : out[0]) codes.push_back(numerics::bf16_from_f32(value));
  return codes;
}

}  // namespace quadrille::testing

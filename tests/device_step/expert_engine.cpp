// SPDX-License-Identifier: Apache-2.0
// Weights and inputs are functions of seeds: nobody needs the whole ones.
#include "device_step/expert_engine.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "device/random_data.h"
#include "device_step/rank_engine.h"
#include "layout/shard_plan.h"
#include "moe/placement.h"

namespace quadrille::testing {
namespace {

device::Buffer poisoned(size_t bytes, device::Stream stream) {
  device::Buffer buffer = must(device::Buffer::allocate(bytes, stream));
  must(device::fill(buffer.get(), kPoison, bytes, stream));
  return buffer;
}

// Of each expert rank; the first has more than the last.
std::vector<int64_t> deal_tokens(int64_t all, int ranks) {
  std::vector<int64_t> tokens(static_cast<size_t>(ranks), all / ranks);
  tokens.front() += all % ranks;
  if (ranks > 1 && tokens.back() > 0) {
    ++tokens.front();
    --tokens.back();
  }
  return tokens;
}

}  // namespace

ExpertEngine::ExpertEngine(parallel::Communicator& host, const GridShape& shape, GridRank& ranks, int64_t all_tokens,
                           device::Stream main)
    : table_(*must(kernels::device_table())),
      number_(host.rank()),
      ranks_(ranks),
      main_(main),
      side_(must(device::OwnedStream::create())),
      begins_(must(device::OwnedEvent::create())),
      ends_(must(device::OwnedEvent::create())),
      rank_tokens_(deal_tokens(all_tokens, shape.expert)) {
  make_layer(shape);
  placement_ = make_placement(shape.expert_of(number_), shape.expert);
  for (int v = 0; v < kVersions; ++v) inputs_[static_cast<size_t>(v)] = make_step_input(v, &memory_, main_);
  const int64_t most = *std::max_element(rank_tokens_.begin(), rank_tokens_.end());
  region_ = must(ranks_.share(layer_, most));
  workspace_ = poisoned(moe::expert_workspace_bytes(layer_, most, region_.memory != nullptr), main_);
  out_ = poisoned(kInFlight * rows_bytes(), main_);
  status_ = poisoned(sizeof(uint32_t), main_);
  must(device::fill(status_.get(), 0, sizeof(uint32_t), main_));
  results_ = must(device::PinnedBuffer::allocate(kInFlight * rows_bytes()));
  must(device::synchronize(main_));
}

ExpertEngine::~ExpertEngine() {
  (void)device::synchronize(side_.get()).ok();
  (void)device::synchronize(main_).ok();
}

void ExpertEngine::make_layer(const GridShape& shape) {
  const layout::Range here =
      must(layout::cut_in_units(kExperts, 1, shape.expert, "experts"))[static_cast<size_t>(shape.expert_of(number_))];
  const int tensor_rank = shape.tensor_of(number_);
  layer_.rule.num_experts = kExperts;
  layer_.rule.top_k = kTopK;
  layer_.experts = make_shard(table_, here.size(), kWidth, here.begin, tensor_rank, shape.tensor, &memory_, main_);
  layer_.shared = make_shard(table_, 1, kSharedWidth, kSharedExpert, tensor_rank, shape.tensor, &memory_, main_);
  layer_.ranks.tensor = ranks_.tensor();
  layer_.ranks.expert = &ranks_.expert();
}

moe::DevicePlacement ExpertEngine::make_placement(int expert_rank, int expert_ranks) {
  std::vector<std::vector<int32_t>> held;
  for (const layout::Range& range : must(layout::cut_in_units(kExperts, 1, expert_ranks, "experts"))) {
    auto& experts = held.emplace_back(static_cast<size_t>(range.size()));
    std::iota(experts.begin(), experts.end(), static_cast<int32_t>(range.begin));
  }
  const moe::Placement placement = must(moe::Placement::of(kExperts, held));
  return {memory_.copy_of(moe::local_experts(placement, expert_rank), main_),
          memory_.copy_of(placement.serving_ranks(expert_rank), main_)};
}

int64_t ExpertEngine::own_tokens() const {
  return rank_tokens_[static_cast<size_t>(ranks_.expert().rank())];
}

int64_t ExpertEngine::first_token() const {
  return std::accumulate(rank_tokens_.begin(), rank_tokens_.begin() + ranks_.expert().rank(), int64_t{0});
}

void ExpertEngine::name_streams(RandomDelays* delays) const {
  delays->name_stream(main_, Role::kMain, number_);
  delays->name_stream(side_.get(), Role::kSide, number_);
}

Status ExpertEngine::enqueue(int number) {
  const StepInput& in = inputs_[static_cast<size_t>(number % kVersions)];
  moe::DeviceBatch batch;
  batch.num_tokens = own_tokens();
  batch.x = in.x + first_token() * kHidden;
  batch.topk_ids = in.ids + first_token() * kTopK;
  batch.topk_weights = in.weights + first_token() * kTopK;
  batch.out = reinterpret_cast<uint16_t*>(out_.as<uint8_t>() + place(number));
  device::fresh_buffer(batch.out, rows_bytes(), main_);
  const moe::DeviceStreams streams{main_, side_.get(), begins_.get(), ends_.get()};
  const moe::ExpertCall experts{*must(kernels::peer_table()), placement_, rank_tokens_, region_};
  QD_TRY_STATUS(moe::run_expert_parallel_layer(table_, layer_, batch, experts, workspace_.get(),
                                               workspace_.size_bytes(), streams, status_.as<uint32_t>()));
  return device::copy_to_host(static_cast<uint8_t*>(results_.get()) + place(number), batch.out, rows_bytes(), main_);
}

Status ExpertEngine::drain() {
  QD_TRY_STATUS(device::synchronize(side_.get()));
  return device::synchronize(main_);
}

std::vector<uint16_t> ExpertEngine::result(int number) const {
  std::vector<uint16_t> rows(static_cast<size_t>(own_tokens() * kHidden));
  std::memcpy(rows.data(), static_cast<const uint8_t*>(results_.get()) + place(number), rows_bytes());
  return rows;
}

uint32_t ExpertEngine::status() {
  return on_host<uint32_t>(status_.get(), 1, main_)[0];
}

}  // namespace quadrille::testing

// SPDX-License-Identifier: Apache-2.0
// Puts a model on a GPU together: checks, the sum of memory, weights, cache, decoder, runner.
#include "model/device_model.h"

#include <algorithm>
#include <chrono>
#include <future>
#include <new>

#include "device/order.h"
#include "layout/kv_tile.h"
#include "model/check_device_options.h"
#include "model/check_step.h"
#include "model/device_load.h"
#include "model/device_places.h"
#include "model/device_random.h"
#include "model/device_runner.h"
#include "model/device_streams.h"
#include "model/load_weights.h"
#include "model/open_folder.h"
#include "model/rope.h"
#include "model/tp_legality.h"
#include "numerics/bf16.h"
#include "parallel/communicator.h"

namespace quadrille::model {
namespace {

using device::Buffer;
using device::HandOver;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

bool has_ranks(const LoadOptions& options) {
  return options.ranks != nullptr && options.ranks->size() > 1;
}

}  // namespace

// Members are destroyed from the last to the first: memory before the streams that order its release.
struct DeviceModel::Impl {
  ModelConfig config;
  DeviceShard shard;
  ModelConfig own;  // of this rank
  LoadOptions options;
  DeviceOptions device;
  const kernels::DeviceTable* table = nullptr;
  std::vector<std::string> notes;
  int64_t max_positions = 0;
  StepSizes sizes;
  WeightPlaces places;
  DeviceWeightsView view;
  StepMemory parts;
  DeviceMemoryPlan plan;
  DeviceLoadTimes times;
  DeviceModelStreams streams;
  std::unique_ptr<parallel::DeviceCommunicator> communicator;  // null: one rank
  moe::DeviceRanks ranks;
  Buffer weights, positions, pages, workspace;
  std::optional<DeviceDecoder> decoder;
  std::unique_ptr<DeviceRunner> runner;
  StepObserver* observer = nullptr;

  ~Impl() {
    if (streams.layer.main.handle == nullptr) return;
    (void)device::use(device.ordinal);
    (void)device::synchronize(streams.layer.main);
    // Where all ranks are there to answer; an object that is destroyed without it leaves its memory to the end.
    if (communicator != nullptr && !options.ranks->loss()->any()) (void)communicator->close();
  }

  // The machine and its streams.
  static Result<std::unique_ptr<Impl>> create(const LoadOptions& options, const DeviceOptions& device) {
    auto impl = std::make_unique<Impl>();
    QD_TRY_STATUS(check_device_options(options, device));
    impl->table = device.table;
    QD_TRY_STATUS(device::available(device.ordinal));
    QD_TRY_STATUS(device::use(device.ordinal));
    impl->options = options;
    impl->device = device;
    QD_TRY_STATUS(impl->streams.open());
    return impl;
  }

  // Of the model `whole`, whose ranks' parts `shards` are (empty: one rank). A collective: the ranks' GPUs meet.
  Status take_part(const ModelConfig& whole, std::vector<layout::ModelShard> shards) {
    config = whole;
    shard.all = std::move(shards);
    shard.rank = shard.is_split() ? options.ranks->rank() : 0;
    QD_TRY_STATUS(check_device_shard(shard, config));
    own = rank_config(config, shard);
    if (!shard.is_split()) return {};
    QD_TRY(communicator, device.join_ranks(*options.ranks, device.ordinal, streams.layer.main));
    ranks.tensor = communicator.get();
    ranks.split_scale = options.split_scale;
    return {};
  }

  uint64_t page_bytes() const {
    const layout::KvTile tile{own.num_kv_heads, own.head_dim};
    return static_cast<uint64_t>(own.num_layers * tile.page_size()) * sizeof(uint16_t);
  }

  // Everything that is decided before memory is touched. `load_bytes`: device memory while the weights are made.
  Status decide(const DeviceModelShape& shape, uint64_t load_bytes_of_random) {
    max_positions = config.max_positions;
    if (options.max_positions > 0) max_positions = std::min(max_positions, options.max_positions);
    places = place_weights(shape, own, options.numerics);
    view = view_weights(places, own, nullptr, options.numerics, ranks);
    QD_TRY_STATUS(check_device_model(view, own, device.max_step_tokens));
    sizes.max_tokens = device.max_step_tokens;
    sizes.max_sequences = device.max_sequences;
    sizes.max_logit_rows = device.max_logit_rows;
    sizes.max_positions = max_positions;
    parts = plan_step_memory(view, own, sizes, shard, ranks);

    DeviceMemoryRequest request;
    request.weight_bytes = places.total;
    request.position_bytes = static_cast<uint64_t>(max_positions * config.head_dim) * sizeof(float);
    request.workspace_bytes = parts.total;
    request.load_bytes = load_bytes_of_random > 0 ? load_bytes_of_random : load_device_bytes(places);
    request.page_bytes = page_bytes();
    request.cache_pages = options.cache_pages;
    request.cache_bytes = options.cache_bytes;
    request.default_pages = (options.default_positions + kPagePositions - 1) / kPagePositions;
    QD_TRY(const device::MemoryInfo memory, device::memory_info());
    QD_TRY(plan, plan_device_memory(request, device.gpu_memory, memory.free_bytes, memory.total_bytes));
    return {};
  }

  // Memory of the weights, taken on the stream that prepares them.
  Status take_weights() {
    QD_TRY(weights, Buffer::allocate(places.total, streams.prepare.prepare, device.allocator));
    weights.release_on(streams.layer.main);
    return {};
  }

  Status load_weights(const std::string& folder, const Inventory& inventory, PinnedRing* ring) {
    const DeviceLoad load{inventory,   config,          options, places,         *table,          weights.as<uint8_t>(),
                          shard.own(), streams.prepare, *ring,   device.ordinal, device.allocator};
    QD_TRY(DeviceLoadReport report, load_to_device(load));
    times.bytes_copied = report.bytes_copied;
    times.copy_seconds = report.seconds;
    times.slots = report.times;
    options.log(LogLevel::kInfo,
                fmt::format("{}: {} bytes to the GPU in {:.3f} s, {:.1f} GB/s", folder, report.bytes_copied,
                            report.seconds, static_cast<double>(report.bytes_copied) / report.seconds / 1e9));
    notes = std::move(report.notes);
    for (const std::string& note : notes) options.log(LogLevel::kWarning, fmt::format("{}: {}", folder, note));
    return {};
  }

  // Behind the weights: cache, position tables, workspace, decoder, runner.
  Status finish() {
    const device::Stream main = streams.layer.main;
    QD_TRY_STATUS(device::enter(HandOver::kWeightsPrepared, streams.prepare.done, main));
    view = view_weights(places, own, weights.as<uint8_t>(), options.numerics, ranks);
    QD_TRY(pages, Buffer::allocate(plan.cache_bytes, main, device.allocator));
    QD_TRY_STATUS(device::fill(pages.get(), 0, plan.cache_bytes, main));
    // No sequence gets longer than the whole cache.
    const int64_t reachable = std::min(max_positions, plan.num_pages * kPagePositions);
    max_positions = sizes.max_positions = reachable;
    const RopeTables rope = make_rope_tables(config.rope, config.head_dim, reachable, options.pool);
    const size_t rope_bytes = rope.cos.size() * sizeof(float);
    const size_t sin_offset = (rope_bytes + 255) / 256 * 256;
    QD_TRY(positions, Buffer::allocate(sin_offset + rope_bytes, main, device.allocator));
    QD_TRY_STATUS(device::copy_to_device(positions.get(), rope.cos.data(), rope_bytes, main));
    QD_TRY_STATUS(device::copy_to_device(positions.as<uint8_t>() + sin_offset, rope.sin.data(), rope_bytes, main));
    QD_TRY_STATUS(device::synchronize(main));  // the tables may go

    parts = plan_step_memory(view, own, sizes, shard, ranks);
    QD_TRY(workspace, Buffer::allocate(parts.total, main, device.allocator));
    DeviceDecoderMemory memory;
    memory.workspace = workspace.get();
    memory.pages = pages.as<uint16_t>();
    memory.num_pages = plan.num_pages;
    memory.cos = positions.as<float>();
    memory.sin = reinterpret_cast<const float*>(positions.as<uint8_t>() + sin_offset);
    decoder.emplace(own, view, *table, options.numerics, parts, memory, streams.layer, shard, ranks,
                    device.joins_steps);
    const int64_t most_padded =
        device.graphs ? std::min({sizes.max_logit_rows, sizes.max_sequences, sizes.max_tokens}) : 0;
    QD_TRY(runner, DeviceRunner::create(&*decoder, sizes, most_padded, main));
    return check_ranks();
  }

  Status check(const Step& step, size_t room) const {
    return check_step(step, room, {config.vocab_size, max_positions, plan.num_pages});
  }
  // Whether all ranks came so far, behind a wait for the stream.
  Status check_ranks() const { return communicator == nullptr ? Status() : communicator->check(); }
  void set_phase(const Step& step) const {
    if (communicator == nullptr) return;
    const bool is_decode = step.logit_rows.size() == step.ids.size();
    options.ranks->set_phase(is_decode ? parallel::Phase::kDecode : parallel::Phase::kPrefill);
  }
  // With ranks nobody stops alone.
  Status check_cancel() const {
    if (communicator != nullptr) return {};
    if (options.cancel == nullptr || !options.cancel->load(std::memory_order_relaxed)) return {};
    return make_error(ErrorCode::kCancelled, "stopped before a step");
  }
};

DeviceModel::DeviceModel(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DeviceModel::~DeviceModel() = default;

Result<std::unique_ptr<DeviceModel>> DeviceModel::load(const std::string& folder, const LoadOptions& options,
                                                       const DeviceOptions& device) {
  try {
    // The GPU wakes up while the folder is read.
    const Clock::time_point start = Clock::now();
    PinnedRing ring;
    double gpu_seconds = 0;
    auto machine = std::async(std::launch::async, [&]() -> Result<std::unique_ptr<Impl>> {
      QD_TRY(std::unique_ptr<Impl> made, Impl::create(options, device));
      QD_TRY_STATUS(ring.open(PinnedRing::kLeastSlotBytes));
      gpu_seconds = seconds_since(start);
      return made;
    });
    const Result<OpenFolder> read = open_folder(folder, options);
    const double folder_seconds = seconds_since(start);
    // The machine before the folder: on one without a GPU nothing else is said.
    QD_TRY(std::unique_ptr<Impl> impl, machine.get());
    if (!read) return read.error();
    QD_TRY_STATUS(device::use(device.ordinal));
    const ModelConfig& config = read->config;
    const Inventory& inventory = read->inventory;
    impl->times.gpu_seconds = gpu_seconds;
    impl->times.folder_seconds = folder_seconds;
    const Clock::time_point ready = Clock::now();
    auto shape = device_shape(inventory, config);
    if (!shape) return shape.error().in(folder);
    std::vector<layout::ModelShard> shards;
    if (has_ranks(options)) {
      options.ranks->set_phase(parallel::Phase::kLoad);
      QD_TRY(std::vector<RankShare> shares, rank_shares(planned_model(inventory, config), options.ranks->size()));
      for (RankShare& share : shares) shards.push_back(std::move(share.shard));
    }
    if (auto taken = impl->take_part(config, std::move(shards)); !taken) return taken.error().in(folder);
    const DeviceModelShape own = rank_shape(*std::move(shape), impl->shard);
    if (auto decided = impl->decide(own, 0); !decided) return decided.error().in(folder);
    QD_TRY_STATUS(impl->take_weights());
    impl->times.memory_seconds = seconds_since(ready);
    QD_TRY_STATUS(impl->load_weights(folder, inventory, &ring));
    const Clock::time_point loaded = Clock::now();
    QD_TRY_STATUS(impl->finish());
    impl->times.finish_seconds = seconds_since(loaded);
    impl->times.total_seconds = seconds_since(start);
    return std::unique_ptr<DeviceModel>(new DeviceModel(std::move(impl)));
  } catch (const std::bad_alloc&) {
    return make_error(ErrorCode::kCapacity, "{}: the system has not enough memory to load the model", folder);
  }
}

Result<std::unique_ptr<DeviceModel>> DeviceModel::random(const ModelConfig& config, const RandomModel& random,
                                                         const LoadOptions& options, const DeviceOptions& device) {
  try {
    QD_TRY(std::unique_ptr<Impl> impl, Impl::create(options, device));
    QD_TRY_STATUS(check_model_config(config, "random model"));
    std::vector<layout::ModelShard> shards;
    if (has_ranks(options)) {
      QD_TRY(shards, layout::plan_shards(random_shape(config, random), options.ranks->size()));
    }
    QD_TRY_STATUS(impl->take_part(config, std::move(shards)));
    const DeviceModelShape shape = rank_shape(random_device_shape(config, random), impl->shard);
    if (auto decided = impl->decide(shape, random_device_bytes(shape)); !decided) {
      return decided.error().in("random model");
    }
    QD_TRY_STATUS(impl->take_weights());
    QD_TRY_STATUS(make_random_weights(shape, impl->places, impl->own, random, options, *impl->table,
                                      impl->weights.as<uint8_t>(), impl->streams.prepare));
    QD_TRY_STATUS(impl->finish());
    return std::unique_ptr<DeviceModel>(new DeviceModel(std::move(impl)));
  } catch (const std::bad_alloc&) {
    return make_error(ErrorCode::kCapacity, "random model: the system has not enough memory for it");
  }
}

int64_t DeviceModel::vocab_size() const {
  return impl_->config.vocab_size;
}
int64_t DeviceModel::max_positions() const {
  return impl_->max_positions;
}
int64_t DeviceModel::num_pages() const {
  return impl_->plan.num_pages;
}
const ModelConfig& DeviceModel::config() const {
  return impl_->config;
}
kernels::Numerics DeviceModel::numerics() const {
  return impl_->options.numerics;
}
const std::vector<std::string>& DeviceModel::notes() const {
  return impl_->notes;
}
const std::vector<layout::ModelShard>& DeviceModel::shards() const {
  return impl_->shard.all;
}
void DeviceModel::set_observer(StepObserver* observer) {
  impl_->observer = observer;
}
const moe::DeviceStreams& DeviceModel::streams() const {
  return impl_->streams.layer;
}
DeviceMemoryPlan DeviceModel::memory_plan() const {
  return impl_->plan;
}
DeviceLoadTimes DeviceModel::load_times() const {
  return impl_->times;
}
int64_t DeviceModel::num_graphs() const {
  return impl_->runner->num_graphs();
}
int64_t DeviceModel::max_async_tokens() const {
  return impl_->sizes.max_tokens;
}
int64_t DeviceModel::max_async_sequences() const {
  return impl_->sizes.max_sequences;
}
bool DeviceModel::draws() const {
  return impl_->config.vocab_size <= kernels::kMostDrawnIds;
}
AsyncForward* DeviceModel::async_forward() {
  return impl_->observer == nullptr ? this : nullptr;
}

Status DeviceModel::run(const Step& step, std::span<float> logits) {
  QD_TRY_STATUS(impl_->check(step, logits.size()));
  QD_TRY_STATUS(impl_->check_cancel());
  QD_TRY_STATUS(device::use(impl_->device.ordinal));
  impl_->set_phase(step);
  const Status done = impl_->runner->run(step, impl_->config.vocab_size, logits, impl_->observer);
  QD_TRY_STATUS(impl_->check_ranks());  // a lost rank is the cause of what went wrong here
  return done;
}

Status DeviceModel::enqueue(const Step& step, std::span<const int32_t> taken_from,
                            std::span<const kernels::SampleRule> rules) {
  QD_TRY_STATUS(impl_->check(step, SIZE_MAX));
  QD_TRY_STATUS(impl_->check_cancel());
  QD_TRY_STATUS(device::use(impl_->device.ordinal));
  impl_->set_phase(step);
  return impl_->runner->enqueue(step, taken_from, rules);
}

Result<std::span<const int32_t>> DeviceModel::collect() {
  QD_TRY_STATUS(device::use(impl_->device.ordinal));
  Result<std::span<const int32_t>> tokens = impl_->runner->collect();
  QD_TRY_STATUS(impl_->check_ranks());
  return tokens;
}

Status DeviceModel::run_moe_block(int64_t layer, std::span<const float> x, int64_t num_tokens, std::span<float> out) {
  const ModelConfig& c = impl_->config;
  const auto count = static_cast<size_t>(std::max<int64_t>(num_tokens, 0) * c.hidden_size);
  if (layer < 0 || layer >= c.num_layers || num_tokens < 0 || x.size() < count || out.size() < count) {
    return make_error(ErrorCode::kInvalidArgument, "block {} of {}: {} tokens with {} values in, room for {} out",
                      layer, c.num_layers, num_tokens, x.size(), out.size());
  }
  QD_TRY_STATUS(device::use(impl_->device.ordinal));
  const device::Stream main = impl_->streams.layer.main;
  std::vector<uint16_t> rows(count);
  std::transform(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(count), rows.begin(), numerics::bf16_from_f32);
  for (int64_t begin = 0; begin < num_tokens; begin += impl_->sizes.max_tokens) {
    const int64_t tokens = std::min(impl_->sizes.max_tokens, num_tokens - begin);
    uint16_t* const piece = rows.data() + begin * c.hidden_size;
    const auto bytes = static_cast<size_t>(2 * tokens * c.hidden_size);
    QD_TRY_STATUS(device::copy_to_device(impl_->decoder->input_rows(), piece, bytes, main));
    QD_TRY_STATUS(impl_->decoder->enqueue_feed_forward(layer, tokens));
    QD_TRY_STATUS(device::copy_to_host(piece, impl_->decoder->output_rows(), bytes, main));
    QD_TRY_STATUS(device::synchronize(main));
  }
  std::transform(rows.begin(), rows.end(), out.begin(), numerics::bf16_to_f32);
  return {};
}

MemoryUse DeviceModel::memory() const {
  MemoryUse use;
  use.weight_bytes = impl_->places.total;
  use.expert_bytes = impl_->places.expert_bytes;
  use.cache_bytes = impl_->plan.cache_bytes;
  use.position_bytes = impl_->positions.size_bytes();
  use.scratch_bytes = impl_->parts.total;
  use.bytes_read_per_token = bytes_read_per_token(impl_->places, impl_->own);
  return use;
}

}  // namespace quadrille::model

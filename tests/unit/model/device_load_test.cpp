// SPDX-License-Identifier: Apache-2.0
// Loading to a GPU that is made of host memory (support/host_device.h): the bytes of every place, at any number of
// threads; what it takes beside the weights; what is said and what is left when the machine is another, when memory
// ends and when somebody stops it.
#include "model/device_load.h"

#include <gmock/gmock.h>

#include <cstring>

#include "edited_model.h"
#include "golden_model.h"
#include "model/device_model.h"
#include "model/device_streams.h"
#include "prepare/prepare_hopper.h"
#include "support/golden.h"
#include "support/host_device.h"
#include "unit/moe/recording_table.h"

namespace quadrille::testing {
namespace {

using namespace model;  // NOLINT: the subject
using device::host_gpu;
using device::HostGpu;
using ::testing::HasSubstr;

const char* const kModels[] = {"models/olmoe_clip/w4a8-g64", "models/qwen2_moe/w4a8-g64"};

// prepare_w4 on the CPU, in the order of its stream.
void prepare_on_host(const kernels::DevicePrepareW4& p) {
  for (int32_t e = 0; e < p.num_experts; ++e) {
    std::vector<prepare::CanonicalW4> parts(static_cast<size_t>(p.num_parts));
    for (int32_t part = 0; part < p.num_parts; ++part) {
      prepare::CanonicalW4& matrix = parts[static_cast<size_t>(part)];
      matrix.n = p.part_n;
      matrix.k = p.k;
      matrix.group_size = p.group_size;
      (p.source == kernels::W4Source::kInt8 ? matrix.codes : matrix.packed) = p.codes[e][part];
      matrix.packed_source = p.source;
      matrix.scales = p.scales[e][part];
      matrix.row_absmax = static_cast<const float*>(p.row_absmax[e]);
    }
    const auto made = prepare::prepare_hopper_w4(parts, p.numerics);
    if (!made) {
      *p.status |= kernels::kStatusBadScale;
      return;
    }
    std::memcpy(p.weights + e * p.expert_stride, made->weights.data(), made->weights.size());
    if (p.channel_scale == nullptr) continue;
    std::memcpy(p.channel_scale + e * static_cast<int64_t>(made->channel_scale.size()), made->channel_scale.data(),
                made->channel_scale.size() * sizeof(float));
  }
}

kernels::DeviceTable host_table() {
  kernels::DeviceTable table = recording_table();
  table.prepare_w4 = [](const kernels::DevicePrepareW4& p, device::Stream stream) {
    device::enqueue_on_host(stream, [p] { prepare_on_host(p); });
  };
  table.choose_bf16_tile = [](int64_t, int64_t) -> int64_t { return 64; };
  return table;
}

struct Loaded {
  WeightPlaces places;
  std::vector<uint8_t> bytes;
  DeviceLoadReport report;
  size_t extra_peak = 0;  // beside the weights
};

class DeviceLoading : public ::testing::Test {
 protected:
  DeviceLoading() { device::reset_host_gpu(size_t{1} << 30); }
  ~DeviceLoading() override { EXPECT_EQ(device::left_on_host_gpu(), ""); }

  static LoadOptions options(ThreadPool* pool, kernels::Numerics numerics = kernels::Numerics::kExact) {
    LoadOptions options;
    options.numerics = numerics;
    options.pool = pool;
    options.default_positions = 128;
    return options;
  }

  static Result<Loaded> load(const std::string& folder, const LoadOptions& options) {
    const ModelConfig config = *read_model_config(folder);
    const Inventory inventory = *take_inventory(folder, *formats::read_hf_config(folder), config, no_log());
    const kernels::DeviceTable table = host_table();
    Loaded loaded;
    loaded.places = place_weights(*device_shape(inventory, config), config, options.numerics);
    DeviceModelStreams streams;
    QD_TRY_STATUS(streams.open());
    PinnedRing ring;
    QD_TRY(const device::Buffer weights, device::Buffer::allocate(loaded.places.total, streams.prepare.prepare));
    const size_t before = host_gpu().taken_bytes;
    const DeviceLoad load{inventory,       config, options, loaded.places, table, weights.as<uint8_t>(), nullptr,
                          streams.prepare, ring,   0};
    QD_TRY(loaded.report, load_to_device(load));
    loaded.extra_peak = host_gpu().peak_bytes - before;
    loaded.bytes.assign(weights.as<uint8_t>(), weights.as<uint8_t>() + loaded.places.total);
    return loaded;
  }

  // The error of a whole model that is loaded.
  static Error refused(const LoadOptions& options, const DeviceOptions& device = on_host()) {
    const auto model = DeviceModel::load(data_path(kModels[0]), options, device);
    EXPECT_FALSE(model.ok());
    return model.ok() ? Error{} : model.error();
  }
  static DeviceOptions on_host() {
    static const kernels::DeviceTable table = host_table();
    DeviceOptions device;
    device.table = &table;
    return device;
  }
};

// --- The bytes ---

std::vector<uint8_t> bytes_at(const Loaded& loaded, size_t offset, size_t bytes) {
  return {loaded.bytes.begin() + static_cast<std::ptrdiff_t>(offset),
          loaded.bytes.begin() + static_cast<std::ptrdiff_t>(offset + bytes)};
}

prepare::CanonicalW4 canonical(const ModuleSource& source, std::vector<std::byte>* codes,
                               std::vector<std::byte>* scales) {
  codes->resize(source.weight->bytes.size());
  scales->resize(source.scale->bytes.size());
  EXPECT_TRUE(source.weight->copy_to(*codes).ok());
  EXPECT_TRUE(source.scale->copy_to(*scales).ok());
  prepare::CanonicalW4 matrix;
  matrix.n = source.n();
  matrix.k = source.k();
  matrix.group_size = source.decision.group_size;
  matrix.packed = codes->data();
  matrix.scales = scales->data();
  return matrix;
}

// Each matrix alone, prepared without the loader.
std::vector<uint8_t> prepared(std::initializer_list<const ModuleSource*> sources, kernels::Numerics numerics) {
  std::vector<std::byte> codes[2], scales[2];
  std::vector<prepare::CanonicalW4> parts;
  for (const ModuleSource* source : sources) {
    const size_t i = parts.size();
    parts.push_back(canonical(*source, &codes[i], &scales[i]));
  }
  return prepare::prepare_hopper_w4(parts, numerics)->weights;
}

TEST_F(DeviceLoading, EveryPlaceHoldsItsMatrix) {
  ThreadPool pool(3, ThreadPool::Start::kAll);
  for (const char* name : kModels) {
    for (const auto numerics : {kernels::Numerics::kExact, kernels::Numerics::kVllm}) {
      SCOPED_TRACE(name);
      const std::string folder = data_path(name);
      const auto loaded = load(folder, options(&pool, numerics));
      ASSERT_TRUE(loaded.ok()) << loaded.error().message;
      const ModelConfig config = *read_model_config(folder);
      const Inventory inventory = *take_inventory(folder, *formats::read_hf_config(folder), config, no_log());
      for (size_t l = 0; l < inventory.layers.size(); ++l) {
        const LayerSources& from = inventory.layers[l];
        const LayerPlace& to = loaded->places.layers[l];
        for (size_t e = 0; e < from.experts.size(); ++e) {
          const MlpSources& expert = from.experts[e];
          const auto gate_up = prepared({&expert.gate, &expert.up}, numerics);
          const auto down = prepared({&expert.down}, numerics);
          ASSERT_TRUE(to.experts.has_value());
          const StackPlace& up_place = to.experts->gate_up;
          const StackPlace& down_place = to.experts->down;
          EXPECT_EQ(bytes_at(*loaded, up_place.weights.offset + e * static_cast<size_t>(up_place.expert_stride),
                             gate_up.size()),
                    gate_up);
          EXPECT_EQ(bytes_at(*loaded, down_place.weights.offset + e * static_cast<size_t>(down_place.expert_stride),
                             down.size()),
                    down);
        }
        EXPECT_EQ(bytes_at(*loaded, to.o.weights.offset, prepared({&from.o}, numerics).size()),
                  prepared({&from.o}, numerics));
        const auto norm = std::as_bytes(from.input_norm.weight->bytes);
        EXPECT_EQ(std::memcmp(loaded->bytes.data() + to.input_norm.offset, norm.data(), norm.size()), 0);
      }
      const auto embedding = inventory.embedding.weight->bytes;
      EXPECT_EQ(std::memcmp(loaded->bytes.data() + loaded->places.embedding.offset, embedding.data(), embedding.size()),
                0);
    }
  }
}

TEST_F(DeviceLoading, ThreadsChangeNothing) {
  const std::string folder = data_path(kModels[1]);
  ThreadPool alone(1);
  const auto first = load(folder, options(&alone));
  ASSERT_TRUE(first.ok()) << first.error().message;
  for (const int threads : {2, 5, 8}) {
    ThreadPool pool(threads, ThreadPool::Start::kAll);
    LoadOptions many = options(&pool);
    int64_t last = 0, told = 0;
    many.progress = [&](const LoadProgress& at) {
      EXPECT_GT(at.modules_done, last);
      last = at.modules_done;
      told = at.modules_total;
    };
    const auto loaded = load(folder, many);
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    // Behind some matrices lies memory that nobody reads; it was filled alike.
    EXPECT_EQ(loaded->bytes, first->bytes) << threads;
    EXPECT_EQ(loaded->report.bytes_copied, first->report.bytes_copied);
    EXPECT_EQ(last, told);
  }
}

// The 4-bit experts of a stack go to the device as one copy or several together, each dense piece as one.
TEST_F(DeviceLoading, AnExpertIsNoMoreThanOneCopy) {
  ThreadPool pool(2, ThreadPool::Start::kAll);
  const std::string folder = data_path(kModels[0]);
  const auto loaded = load(folder, options(&pool));
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  const ModelConfig config = *read_model_config(folder);
  const Inventory inventory = *take_inventory(folder, *formats::read_hf_config(folder), config, no_log());
  int64_t stacks = 0, dense = 0;
  for (const LayerSources& layer : inventory.layers) {
    stacks += 2 * static_cast<int64_t>(layer.experts.size()) + 2;  // gate_up and down; qkv, o
  }
  for (const ModuleSource* module : inventory.modules()) dense += module->quantised() ? 0 : 1;
  EXPECT_LT(host_gpu().num_copies_to_device, stacks + dense);
  EXPECT_GE(host_gpu().num_copies_to_device, 4 * static_cast<int64_t>(inventory.layers.size()) + dense);
}

// --- Memory ---

TEST_F(DeviceLoading, TakesTwoExpertsBesideTheWeights) {
  ThreadPool pool(4, ThreadPool::Start::kAll);
  for (const char* name : kModels) {
    const auto loaded = load(data_path(name), options(&pool));
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    EXPECT_LE(loaded->extra_peak, load_device_bytes(loaded->places));
    size_t largest = 0;
    const auto look_at = [&](const StackPlace& stack) {
      if (stack.shape.is_w4) largest = std::max(largest, static_cast<size_t>(stack.expert_stride));
    };
    for (const LayerPlace& layer : loaded->places.layers) {
      for (const StackPlace& stack : layer.qkv) look_at(stack);
      look_at(layer.o);
      for (const auto* mlp : {&layer.experts, &layer.shared, &layer.dense}) {
        if (*mlp) look_at((*mlp)->gate_up);
        if (*mlp) look_at((*mlp)->down);
      }
    }
    // A prepared expert is no smaller than its codes and scales in the file; each of its pieces is rounded up to 256.
    EXPECT_LE(loaded->extra_peak, 2 * (largest + 7 * 256) + 256) << name;
  }
}

TEST_F(DeviceLoading, AModelHoldsWhatWasPlanned) {
  ThreadPool pool(2, ThreadPool::Start::kAll);
  const auto model = DeviceModel::load(data_path(kModels[0]), options(&pool), on_host());
  ASSERT_TRUE(model.ok()) << model.error().message;
  EXPECT_LE(host_gpu().peak_bytes, (*model)->memory_plan().needed_bytes);
  EXPECT_EQ(host_gpu().num_pinned, 4) << "those of the steps: the ring is gone";
  const DeviceLoadTimes times = (*model)->load_times();
  EXPECT_GT(times.bytes_copied, 0u);
  EXPECT_GE(times.total_seconds, times.copy_seconds);
}

TEST_F(DeviceLoading, TooLittleMemoryIsSaidBeforeAnythingIsTaken) {
  ThreadPool pool(2, ThreadPool::Start::kAll);
  device::reset_host_gpu(size_t{200} << 20);
  const Error error = refused(options(&pool));
  EXPECT_EQ(error.code, ErrorCode::kCapacity);
  EXPECT_THAT(error.message, HasSubstr(data_path(kModels[0])));
  EXPECT_THAT(error.message, HasSubstr("bytes of GPU memory"));
  EXPECT_THAT(error.message, HasSubstr("209715200 of 209715200 are free"));
  EXPECT_EQ(host_gpu().num_allocations, 0);
  EXPECT_EQ(host_gpu().num_copies_to_device, 0);
}

TEST_F(DeviceLoading, TheLimitBoundsWhatIsUsed) {
  ThreadPool pool(2, ThreadPool::Start::kAll);
  const auto model = DeviceModel::load(data_path(kModels[0]), options(&pool), on_host());
  ASSERT_TRUE(model.ok()) << model.error().message;
  const uint64_t needed = (*model)->memory_plan().needed_bytes;
  DeviceOptions limited = on_host();
  limited.gpu_memory.bytes = needed - 1;
  const int64_t taken = host_gpu().num_allocations;
  const Error error = refused(options(&pool), limited);
  EXPECT_EQ(error.code, ErrorCode::kCapacity);
  EXPECT_THAT(error.message, HasSubstr(fmt::format("needs {} bytes", needed)));
  EXPECT_THAT(error.message, HasSubstr("--gpu-memory allows less"));
  EXPECT_EQ(host_gpu().num_allocations, taken);
  limited.gpu_memory.bytes = needed;
  EXPECT_TRUE(DeviceModel::load(data_path(kModels[0]), options(&pool), limited).ok());
}

// Every allocation of a load in turn.
TEST_F(DeviceLoading, MemoryThatEndsMidwayLeavesNothing) {
  ThreadPool pool(3, ThreadPool::Start::kAll);
  int64_t failed = 0;
  for (; failed < 100; ++failed) {
    device::reset_host_gpu(size_t{1} << 30);
    host_gpu().failing_allocation = failed;
    const auto model = DeviceModel::load(data_path(kModels[0]), options(&pool), on_host());
    if (model.ok()) break;
    EXPECT_EQ(model.error().code, ErrorCode::kCapacity) << model.error().message;
    EXPECT_THAT(model.error().message, ::testing::ContainsRegex("asked for [0-9]+ bytes of device memory"));
    EXPECT_EQ(device::left_on_host_gpu(), "") << failed;
  }
  EXPECT_GE(failed, 5) << "weights, staging, status, pages, positions, workspace";
}

// --- The machine ---

TEST_F(DeviceLoading, AnotherGpuIsNamed) {
  ThreadPool pool(1);
  host_gpu().properties.name = "NVIDIA A100-SXM4-80GB";
  host_gpu().properties.major = 8;
  const Error error = refused(options(&pool));
  EXPECT_EQ(error.code, ErrorCode::kUnsupported);
  EXPECT_THAT(error.message, HasSubstr("NVIDIA A100-SXM4-80GB"));
  EXPECT_THAT(error.message, HasSubstr("expected compute capability 9.0"));
  EXPECT_THAT(error.message, HasSubstr("found 8.0"));
  EXPECT_EQ(host_gpu().num_allocations, 0);
}

TEST_F(DeviceLoading, AnOldDriverIsNamed) {
  ThreadPool pool(1);
  host_gpu().properties.driver_version = 11040;
  const Error error = refused(options(&pool));
  EXPECT_EQ(error.code, ErrorCode::kUnsupported);
  EXPECT_THAT(error.message, HasSubstr("driver is too old"));
  EXPECT_THAT(error.message, HasSubstr("found one for CUDA 11.4"));
  EXPECT_THAT(error.message, HasSubstr("update the driver"));
  EXPECT_EQ(host_gpu().num_allocations, 0);
}

// --- Stopping and damage ---

TEST_F(DeviceLoading, StopsOnRequest) {
  for (const int threads : {1, 4}) {
    ThreadPool pool(threads, ThreadPool::Start::kAll);
    std::atomic<bool> cancel{false};
    LoadOptions stopped = options(&pool);
    stopped.cancel = &cancel;
    // From the first module on, and before it.
    stopped.progress = [&](const LoadProgress&) { cancel.store(true); };
    for (int round = 0; round < 2; ++round) {
      const auto model = DeviceModel::load(data_path(kModels[1]), stopped, on_host());
      ASSERT_FALSE(model.ok());
      EXPECT_EQ(model.error().code, ErrorCode::kCancelled) << model.error().message;
      EXPECT_EQ(device::left_on_host_gpu(), "");
    }
  }
}

TEST_F(DeviceLoading, StopsBeforeAStep) {
  ThreadPool pool(2, ThreadPool::Start::kAll);
  std::atomic<bool> cancel{false};
  LoadOptions stopped = options(&pool);
  stopped.cancel = &cancel;
  const auto model = DeviceModel::load(data_path(kModels[0]), stopped, on_host());
  ASSERT_TRUE(model.ok()) << model.error().message;
  cancel.store(true);
  Step step;
  const Status ran = (*model)->run(step, {});
  ASSERT_FALSE(ran.ok());
  EXPECT_EQ(ran.error().code, ErrorCode::kCancelled) << ran.error().message;
}

TEST_F(DeviceLoading, TheFirstDamageIsToldAtAnyNumberOfThreads) {
  EditedModel edited(data_path(kModels[0]));
  const char* const damaged[] = {"model.layers.0.mlp.experts.3.up_proj.weight_scale",
                                 "model.layers.1.mlp.experts.0.gate_proj.weight_scale", "model.norm.weight"};
  for (const char* name : damaged) edited.tensor(name).set16(5, 0x7fc0);
  const std::string& folder = edited.write();
  std::string first;
  for (const int threads : {1, 2, 7}) {
    ThreadPool pool(threads, ThreadPool::Start::kAll);
    for (int round = 0; round < 5; ++round) {
      const auto loaded = load(folder, options(&pool));
      ASSERT_FALSE(loaded.ok());
      EXPECT_EQ(loaded.error().code, ErrorCode::kInvalidData);
      EXPECT_THAT(loaded.error().message, HasSubstr("NaN"));
      if (first.empty()) first = loaded.error().message;
      EXPECT_EQ(loaded.error().message, first);
      EXPECT_EQ(device::left_on_host_gpu(), "");
    }
  }
}

}  // namespace
}  // namespace quadrille::testing

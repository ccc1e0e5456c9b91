// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_gpu_ceilings.h"

#include <algorithm>
#include <functional>
#include <random>
#include <vector>

#include "device/device.h"
#include "device/stream_time.h"
#include "kernels/api/device_table.h"

namespace quadrille::cli {
namespace {

constexpr size_t kBytes = size_t{1} << 31;
constexpr int kRepeats = 10;

class Probe {
 public:
  static Result<Probe> create(const kernels::DeviceTable& table, int num_sms) {
    Probe probe(table, num_sms);
    QD_TRY(probe.stream_, device::OwnedStream::create());
    QD_TRY(probe.memory_, device::Buffer::allocate(kBytes, probe.stream()));
    QD_TRY(probe.sink_, device::Buffer::allocate(256, probe.stream()));
    return probe;
  }

  // Random bytes all over: a megabyte from the host, doubled on the device.
  Status fill() {
    std::vector<uint64_t> random(size_t{1} << 17);
    std::mt19937_64 generator(1);
    std::generate(random.begin(), random.end(), generator);
    size_t filled = random.size() * sizeof(uint64_t);
    QD_TRY_STATUS(device::copy_to_device(memory_.get(), random.data(), filled, stream()));
    for (; filled < kBytes; filled *= 2) {
      QD_TRY_STATUS(device::copy_on_device(memory_.as<uint8_t>() + filled, memory_.get(), filled, stream()));
    }
    return device::synchronize(stream());
  }

  Result<double> read() {
    return best_rate(static_cast<double>(kBytes), [this]() -> Status {
      table_.probe_read({memory_.get(), kBytes, num_sms_, sink_.as<uint32_t>()}, stream());
      return {};
    });
  }
  Result<double> copy() {
    return best_rate(static_cast<double>(kBytes), [this] {
      return device::copy_on_device(memory_.as<uint8_t>() + kBytes / 2, memory_.get(), kBytes / 2, stream());
    });
  }
  // A short run tells how many loops 0.3 s are.
  Result<double> products() {
    constexpr int64_t kShort = 20000;
    constexpr double kSeconds = 0.3;
    QD_TRY(const double first, seconds_of_products(kShort));
    const auto loops = std::max<int64_t>(kShort, static_cast<int64_t>(kShort * kSeconds / first));
    QD_TRY(const double seconds, seconds_of_products(loops));
    return static_cast<double>(loops) * kernels::kProbeOperationsALoop * num_sms_ / seconds;
  }

 private:
  Probe(const kernels::DeviceTable& table, int num_sms) : table_(table), num_sms_(num_sms) {}
  device::Stream stream() const { return stream_->get(); }

  Result<double> seconds_of_products(int64_t loops) {
    return device::fastest_seconds(stream(), 1, [&]() -> Status {
      table_.probe_products({memory_.as<uint8_t>(), loops, num_sms_, sink_.as<float>()}, stream());
      return {};
    });
  }
  Result<double> best_rate(double bytes, const std::function<Status()>& enqueue) {
    QD_TRY(const double seconds, device::fastest_seconds(stream(), kRepeats, enqueue));
    return bytes / seconds;
  }

  const kernels::DeviceTable& table_;
  int num_sms_;
  std::optional<device::OwnedStream> stream_;
  device::Buffer memory_, sink_;
};

}  // namespace

Result<GpuCeilings> probe_gpu(int ordinal) {
  QD_TRY(const kernels::DeviceTable* const table, kernels::device_table());
  QD_TRY(const device::Properties properties, device::properties(ordinal));
  QD_TRY_STATUS(device::use(ordinal));
  QD_TRY(Probe probe, Probe::create(*table, properties.num_sms));
  QD_TRY_STATUS(probe.fill());
  GpuCeilings ceilings;
  QD_TRY(ceilings.read, probe.read());
  QD_TRY(ceilings.copy, probe.copy());
  QD_TRY(ceilings.fp8, probe.products());
  return ceilings;
}

}  // namespace quadrille::cli

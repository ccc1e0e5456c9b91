// SPDX-License-Identifier: Apache-2.0
// One rank with a GPU: every collective is a copy on the stream.
#include "device/device.h"
#include "parallel/nccl.h"

namespace quadrille::parallel {
namespace {

class DeviceSingle final : public DeviceCommunicator {
 public:
  DeviceSingle() : DeviceCommunicator(0, 1) {}
  const char* body() const override { return "single"; }
  Status all_reduce_sum(float*, size_t, device::Stream) override { return {}; }
  Status all_reduce_max(float*, size_t, device::Stream) override { return {}; }
  Status all_gather(const void* mine, size_t bytes, void* all, device::Stream stream) override {
    return copy(all, mine, bytes, stream);
  }
  Status all_gather_v(const void* mine, std::span<const size_t> bytes, void* all, device::Stream stream) override {
    if (bytes.size() != 1) return wrong("all_gather_v", bytes.size());
    return copy(all, mine, bytes[0], stream);
  }
  Status reduce_scatter_sum(const float* in, std::span<const size_t> counts, float* out,
                            device::Stream stream) override {
    if (counts.size() != 1) return wrong("reduce_scatter_sum", counts.size());
    return copy(out, in, counts[0] * sizeof(float), stream);
  }
  Status all_to_all_v(const void* send, std::span<const size_t> send_bytes, void* recv,
                      std::span<const size_t> recv_bytes, device::Stream stream) override {
    if (send_bytes.size() != 1 || recv_bytes.size() != 1 || send_bytes[0] != recv_bytes[0]) {
      return wrong("all_to_all_v", send_bytes.size());
    }
    return copy(recv, send, send_bytes[0], stream);
  }
  Status broadcast(void*, size_t, int root, device::Stream) override {
    if (root == 0) return {};
    return make_error(ErrorCode::kInvalidArgument, "broadcast: root {} with one rank", root);
  }
  Status barrier(device::Stream) override { return {}; }
  Status check() override { return {}; }

 private:
  static Status copy(void* to, const void* from, size_t bytes, device::Stream stream) {
    if (bytes == 0 || to == from) return {};
    return device::copy_on_device(to, from, bytes, stream);
  }
  static Error wrong(const char* what, size_t counts) {
    return make_error(ErrorCode::kInvalidArgument, "{}: {} counts with one rank, expected one, equal both ways", what,
                      counts);
  }
};

}  // namespace

std::unique_ptr<DeviceCommunicator> single_device_communicator() {
  return std::make_unique<DeviceSingle>();
}

}  // namespace quadrille::parallel

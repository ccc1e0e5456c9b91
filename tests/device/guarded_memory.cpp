// SPDX-License-Identifier: Apache-2.0
// CUDA's virtual memory calls, found through the runtime so that no driver library is linked.
#include "device/guarded_memory.h"

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>

namespace quadrille::testing {
namespace {

constexpr size_t kFront = 4096;

template <typename Function>
Function driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status{};
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &status);
  if (error != cudaSuccess || status != cudaDriverEntryPointSuccess) {
    throw std::runtime_error(fmt::format("the driver has no {}", name));
  }
  return reinterpret_cast<Function>(found);
}

struct Driver {
  decltype(&cuMemGetAllocationGranularity) granularity =
      driver_function<decltype(&cuMemGetAllocationGranularity)>("cuMemGetAllocationGranularity");
  decltype(&cuMemAddressReserve) reserve = driver_function<decltype(&cuMemAddressReserve)>("cuMemAddressReserve");
  decltype(&cuMemAddressFree) release_range = driver_function<decltype(&cuMemAddressFree)>("cuMemAddressFree");
  decltype(&cuMemCreate) create = driver_function<decltype(&cuMemCreate)>("cuMemCreate");
  decltype(&cuMemRelease) release = driver_function<decltype(&cuMemRelease)>("cuMemRelease");
  decltype(&cuMemMap) map = driver_function<decltype(&cuMemMap)>("cuMemMap");
  decltype(&cuMemUnmap) unmap = driver_function<decltype(&cuMemUnmap)>("cuMemUnmap");
  decltype(&cuMemSetAccess) set_access = driver_function<decltype(&cuMemSetAccess)>("cuMemSetAccess");
};
const Driver& driver() {
  static const Driver functions;
  return functions;
}

void check(CUresult result, const char* what) {
  if (result != CUDA_SUCCESS)
    throw std::runtime_error(fmt::format("{}: driver error {}", what, static_cast<int>(result)));
}

CUmemAllocationProp properties() {
  int ordinal = 0;
  if (cudaGetDevice(&ordinal) != cudaSuccess) throw std::runtime_error("no current device");
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = ordinal;
  return properties;
}

}  // namespace

void* GuardedMemory::take_bytes(size_t bytes, size_t alignment, uint8_t byte, device::Stream stream) {
  const CUmemAllocationProp physical = properties();
  size_t granule = 0;
  check(driver().granularity(&granule, &physical, CU_MEM_ALLOC_GRANULARITY_MINIMUM), "granularity");
  Region region;
  region.mapped = (bytes + kFront + granule - 1) / granule * granule;
  region.reserved = region.mapped + granule;
  CUdeviceptr address = 0;
  check(driver().reserve(&address, region.reserved, granule, 0, 0), "reserving addresses");
  CUmemGenericAllocationHandle handle = 0;
  check(driver().create(&handle, region.mapped, &physical, 0), "taking physical memory");
  check(driver().map(address, region.mapped, 0, handle, 0), "mapping");
  const CUmemAccessDesc access{physical.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  check(driver().set_access(address, region.mapped, &access, 1), "allowing access");
  region.address = address;
  region.handle = handle;
  const uint64_t end = address + region.mapped;
  const uint64_t begin = (end - bytes) / alignment * alignment;
  region.take = reinterpret_cast<uint8_t*>(begin);
  region.bytes = bytes;
  region.front = kFront;
  regions_.push_back(region);
  // What lies behind the take up to the end of the page is there only for the alignment: canaries, too.
  must(device::fill(region.take - kFront, kCanary, end - begin + kFront, stream));
  must(device::fill(region.take, byte, bytes, stream));
  return region.take;
}

std::string GuardedMemory::harmed(device::Stream stream) const {
  std::string text;
  for (const Region& region : regions_) {
    const std::string front = harmed_canaries(region.take - region.front, region.front, stream);
    const uint64_t behind = reinterpret_cast<uint64_t>(region.take) + region.bytes;
    const std::string back =
        harmed_canaries(reinterpret_cast<const uint8_t*>(behind), region.address + region.mapped - behind, stream);
    if (!front.empty() || !back.empty()) {
      text += fmt::format("take of {} bytes: before it [{}], behind it [{}]; ", region.bytes, front, back);
    }
  }
  return text;
}

GuardedMemory::~GuardedMemory() {
  (void)cudaDeviceSynchronize();
  for (const Region& region : regions_) {
    (void)driver().unmap(region.address, region.mapped);
    (void)driver().release(region.handle);
    (void)driver().release_range(region.address, region.reserved);
  }
}

}  // namespace quadrille::testing

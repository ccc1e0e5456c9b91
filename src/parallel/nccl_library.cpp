// SPDX-License-Identifier: Apache-2.0
#include "parallel/nccl_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

namespace quadrille::parallel {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFileName = "libnccl.so.2";
constexpr int kOldest = 20805;  // 2.8.5: send and recv as they are today

// site-packages/nvidia/nccl/lib of the Python versions below `root`/lib.
void add_python_places(const fs::path& root, std::vector<std::string>& places) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(root / "lib", error)) {
    if (!entry.path().filename().string().starts_with("python3")) continue;
    for (const char* packages : {"site-packages", "dist-packages"}) {
      places.push_back((entry.path() / packages / "nvidia/nccl/lib" / kFileName).string());
    }
  }
}

std::vector<std::string> places_of(const std::string& where) {
  std::error_code error;
  if (!where.empty()) return {fs::is_directory(where, error) ? (fs::path(where) / kFileName).string() : where};
  std::vector<std::string> places{kFileName, std::string("/usr/local/cuda/lib64/") + kFileName};
  if (const char* environment = std::getenv("VIRTUAL_ENV")) {  // NOLINT(concurrency-mt-unsafe): nothing sets variables
    add_python_places(environment, places);
  }
  add_python_places("/usr/local", places);
  add_python_places("/usr", places);
  return places;
}

template <typename Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  return function != nullptr;
}

}  // namespace

Result<NcclLibrary> open_nccl(const std::string& where) {
  void* opened = nullptr;
  std::string tried;
  for (const std::string& place : places_of(where)) {
    opened = ::dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (opened != nullptr) break;
    tried += fmt::format("{}{}", tried.empty() ? "" : ", ", place);
  }
  if (opened == nullptr) {
    return make_error(
        ErrorCode::kUnsupported,
        "NCCL, which connects the GPUs, was not found: install libnccl2 or the Python package nvidia-nccl, "
        "or name its folder; tried {}",
        tried);
  }
  NcclLibrary nccl{};
  const bool complete =
      find(opened, "ncclGetVersion", nccl.GetVersion) && find(opened, "ncclGetUniqueId", nccl.GetUniqueId) &&
      find(opened, "ncclCommInitRank", nccl.CommInitRank) && find(opened, "ncclCommDestroy", nccl.CommDestroy) &&
      find(opened, "ncclCommAbort", nccl.CommAbort) && find(opened, "ncclCommGetAsyncError", nccl.CommGetAsyncError) &&
      find(opened, "ncclGetErrorString", nccl.GetErrorString) && find(opened, "ncclAllReduce", nccl.AllReduce) &&
      find(opened, "ncclAllGather", nccl.AllGather) && find(opened, "ncclBroadcast", nccl.Broadcast) &&
      find(opened, "ncclSend", nccl.Send) && find(opened, "ncclRecv", nccl.Recv) &&
      find(opened, "ncclGroupStart", nccl.GroupStart) && find(opened, "ncclGroupEnd", nccl.GroupEnd);
  int version = 0;
  if (!complete || nccl.GetVersion(&version) != kNcclSuccess || version < kOldest) {
    return make_error(ErrorCode::kUnsupported, "the NCCL that was found is too old: version {}, expected {} or newer",
                      version, kOldest);
  }
  return nccl;
}

}  // namespace quadrille::parallel

// SPDX-License-Identifier: Apache-2.0
#include "parallel/mpi.h"

#include <dlfcn.h>

#include <filesystem>
#include <utility>
#include <vector>

#include "parallel/mpi_module.h"

namespace quadrille::parallel {
namespace {

constexpr const char* kFileName = "libquadrille_mpi.so";
constexpr size_t kErrorBytes = 1024;

class OpenedMpi final : public Wire {
 public:
  OpenedMpi(const QdMpiModule* module, int rank) : module_(module), rank_(rank) {}
  const char* name() const override { return "mpi"; }

  Status exchange(Collective what, std::span<const Transfer> transfers, const LossState& loss) override {
    std::vector<QdMpiTransfer> plain;
    for (const Transfer& t : transfers) {
      plain.push_back({t.peer, t.send.data(), t.send.size(), t.recv.data(), t.recv.size()});
    }
    const auto stop = [](void* context) { return static_cast<int>(static_cast<const LossState*>(context)->any()); };
    char text[kErrorBytes] = {};
    const int status =
        module_->exchange(plain.data(), plain.size(), stop, const_cast<LossState*>(&loss), text, sizeof text);
    if (status == kQdMpiDone) return {};
    if (status == kQdMpiStopped) return loss.error(collective_name(what), rank_);
    const ErrorCode code = status == kQdMpiOutOfStep ? ErrorCode::kInvalidData : ErrorCode::kLostRank;
    return make_error(code, "{} on rank {}: {}", collective_name(what), rank_, text);
  }

  Status finish() override {
    char text[kErrorBytes] = {};
    if (module_->finish(text, sizeof text) == kQdMpiDone) return {};
    return make_error(ErrorCode::kIo, "ending MPI on rank {}: {}", rank_, text);
  }

 private:
  const QdMpiModule* module_;
  int rank_;
};

std::vector<std::string> places(const std::string& module) {
  if (!module.empty()) return {module};
  std::vector<std::string> found;
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    found.push_back((program.parent_path() / kFileName).string());
    found.push_back((program.parent_path().parent_path() / "lib" / kFileName).string());
  }
  found.emplace_back(kFileName);
  return found;
}

}  // namespace

Result<MpiWire> open_mpi_wire(const std::string& module) {
  void* library = nullptr;
  std::string tried;
  for (const std::string& place : places(module)) {
    // Global: Open MPI opens parts of itself that look for its symbols in the process.
    library = ::dlopen(place.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (library != nullptr) break;
    const char* reason = ::dlerror();  // NOLINT(concurrency-mt-unsafe): glibc keeps it for each thread
    tried += fmt::format("\n  {}", reason != nullptr ? reason : place.c_str());
  }
  if (library == nullptr) {
    return make_error(
        ErrorCode::kUnsupported,
        "this process was started by mpirun, and {} could not be opened: build where Open MPI is installed "
        "(libopenmpi-dev) and keep the file beside the program, or set RANK, WORLD_SIZE, MASTER_ADDR and "
        "MASTER_PORT to run without MPI; tried:{}",
        kFileName, tried);
  }
  // Stays open for good: MPI cannot be unloaded.
  using GetModule = const QdMpiModule* (*)();
  const auto get = reinterpret_cast<GetModule>(::dlsym(library, QD_MPI_MODULE_SYMBOL));
  if (get == nullptr || get()->version != QD_MPI_MODULE_VERSION) {
    return make_error(ErrorCode::kUnsupported, "{} is of another version: expected {}; build both together", kFileName,
                      QD_MPI_MODULE_VERSION);
  }
  MpiWire opened;
  char text[kErrorBytes] = {};
  if (get()->start(&opened.rank, &opened.size, text, sizeof text) != kQdMpiDone) {
    return make_error(ErrorCode::kIo, "MPI did not start: {}", text);
  }
  opened.wire = std::make_unique<OpenedMpi>(get(), opened.rank);
  return opened;
}

}  // namespace quadrille::parallel

// SPDX-License-Identifier: Apache-2.0
// Prepared weights of one matrix of each expert, on a CPU or on a GPU, and where host layers compute. Made by
// bind_weights.cpp, used by bind_layer.cpp.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "dlpack.h"
#include "quadrille/c_host.h"
#include "streams.h"
#include "tensor_argument.h"

namespace quadrille::python {

// Threads and kernels of the CPU.
class Place {
 public:
  Place(int32_t threads, const std::string& kernels);
  ~Place() { qd_host_destroy(host_); }
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;
  const qd_host* host() const { return host_; }

 private:
  qd_host* host_ = nullptr;
};

// What prepare_weights() and prepare() are asked for; the tensors have been checked against each other.
struct WeightSources {
  std::vector<TensorArgument> codes, scales, biases;  // one tensor, or gate and up
  int32_t source = QD_SOURCE_UINT4B8;
  int32_t numerics = QD_NUMERICS_EXACT;
  int64_t num_experts = 1, num_parts = 1, part_n = 0, k = 0, group_size = 0;
  dlpack::Device where{dlpack::kCpu, 0};

  std::vector<const void*> code_pointers() const { return pointers(codes); }
  std::vector<const void*> scale_pointers() const { return pointers(scales); }
  std::vector<const void*> bias_pointers() const { return pointers(biases); }

 private:
  // Part p of expert e at e * num_parts + p.
  std::vector<const void*> pointers(const std::vector<TensorArgument>& tensors) const;
};

// tensors: {"codes": [t] or [gate, up], "scales": ..., "biases": ... or absent}; one tensor may hold both parts. Rank 3
// where `stacked`, else 2. Errors begin with `name`.
WeightSources read_weight_sources(const std::string& name, nanobind::dict tensors, int32_t source, int32_t numerics,
                                  int64_t group_size, int64_t num_parts, bool stacked, uintptr_t stream);
// ValueError for codes that cannot be overwritten: on a GPU, read-only.
void check_may_be_in_place(const WeightSources& sources);

// The same for the C functions; valid as long as this and the sources live.
class Description {
 public:
  explicit Description(const WeightSources& sources);
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;
  qd_weights_desc desc;

 private:
  std::vector<const void*> codes_, scales_, biases_;
};

class Weights {
 public:
  Weights(WeightSources sources, const Place* place, uintptr_t stream, bool in_place);
  ~Weights();
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  const qd_host_weights* host() const { return host_; }
  const qd_weights* device() const { return device_; }
  dlpack::Device where() const { return where_; }
  bool on_gpu() const { return where_.type == dlpack::kCuda; }
  int64_t num_experts() const { return num_experts_; }
  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  uint64_t num_bytes() const { return num_bytes_; }
  // After work that reads them was enqueued on `stream`: their memory is released behind it.
  void used_on(void* stream) { marks_.note(stream); }
  // Whether the preparation is done. Of those that are, lets the sources go.
  bool prepared();
  // Waits; ValueError where a scale or a code was bad.
  void synchronize();
  // prepared() of every weights on a GPU whose sources are kept.
  static void release_sources();

 private:
  void prepare_on_host(const qd_weights_desc& desc, const Place& place, bool in_place);
  void prepare_on_gpu(const qd_weights_desc& desc, uintptr_t stream);

  dlpack::Device where_;
  int64_t num_experts_, n_, k_;
  uint64_t num_bytes_ = 0;
  qd_host_weights* host_ = nullptr;
  qd_weights* device_ = nullptr;
  std::vector<nanobind::object> sources_;  // of a preparation under way, or of codes that are overwritten in place
  Marks marks_;                            // preparation and uses
};

}  // namespace quadrille::python

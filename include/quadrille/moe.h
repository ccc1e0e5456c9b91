// SPDX-License-Identifier: Apache-2.0
// W4A8 Mixture-of-Experts layers on Hopper for C++17: owners and results over c_api.h, which says what each call does,
// wants and returns. Header only, standard headers only, no exceptions of its own. Streams and events are void*
// (cudaStream_t, cudaEvent_t), yours or those of Stream and Event below.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "quadrille/c_api.h"

namespace quadrille::gpu {

struct Error {
  qd_result code = QD_INTERNAL;
  std::string message;
};

// A value or an Error. Test it with operator bool, then use * / -> or error().
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}
  explicit operator bool() const { return state_.index() == 0; }
  T& operator*() { return *std::get_if<0>(&state_); }
  const T& operator*() const { return *std::get_if<0>(&state_); }
  T* operator->() { return std::get_if<0>(&state_); }
  const T* operator->() const { return std::get_if<0>(&state_); }
  const Error& error() const { return *std::get_if<1>(&state_); }

 private:
  std::variant<T, Error> state_;
};

// Success, or an Error: a Result without a value.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Error error) : error_(std::move(error)) {}
  explicit operator bool() const { return error_.code == QD_OK; }
  const Error& error() const { return error_; }

 private:
  Error error_{QD_OK, {}};
};

namespace detail {

// Status of a C call that takes its error last.
template <typename Call, typename... Arguments>
Status call(Call function, Arguments... arguments) {
  qd_error error;
  const qd_result code = function(arguments..., &error);
  if (code == QD_OK) return {};
  return Error{code, error.message};
}

// A handle that is released once. Release: void operator()(T*, void* extra).
template <typename T, typename Release>
class Owned {
 public:
  Owned() = default;
  explicit Owned(T* handle, void* extra = nullptr) : handle_(handle), extra_(extra) {}
  Owned(Owned&& other) noexcept
      : handle_(std::exchange(other.handle_, nullptr)), extra_(std::exchange(other.extra_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(extra_, other.extra_);
    return *this;
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    if (handle_ != nullptr) Release()(handle_, extra_);
  }
  T* get() const { return handle_; }
  void set_extra(void* extra) { extra_ = extra; }

 private:
  T* handle_ = nullptr;
  void* extra_ = nullptr;
};

struct DestroyStream {
  void operator()(void* stream, void*) const { qd_stream_destroy(stream); }
};
struct DestroyEvent {
  void operator()(void* event, void*) const { qd_event_destroy(event); }
};
struct ReleaseMemory {
  void operator()(void* memory, void* stream) const { qd_memory_release(memory, stream); }
};
struct DestroyWeights {
  void operator()(qd_weights* weights, void* stream) const { qd_weights_destroy(weights, stream); }
};
struct DestroyLayer {
  void operator()(qd_layer* layer, void*) const { qd_layer_destroy(layer); }
};

}  // namespace detail

// --- Devices, streams, memory ---

inline Status available(int32_t ordinal = 0) {
  return detail::call(qd_device_available, ordinal);
}
inline Status use(int32_t ordinal) {
  return detail::call(qd_device_use, ordinal);
}

class Stream {
 public:
  static Result<Stream> create() {
    void* handle = nullptr;
    if (auto made = detail::call(qd_stream_create, &handle); !made) return made.error();
    return Stream(handle);
  }
  void* get() const { return owned_.get(); }
  Status synchronize() const { return detail::call(qd_stream_synchronize, get()); }
  Status wait(void* event) const { return detail::call(qd_stream_wait_event, get(), event); }

 private:
  explicit Stream(void* handle) : owned_(handle) {}
  detail::Owned<void, detail::DestroyStream> owned_;
};

class Event {
 public:
  static Result<Event> create() {
    void* handle = nullptr;
    if (auto made = detail::call(qd_event_create, &handle); !made) return made.error();
    return Event(handle);
  }
  void* get() const { return owned_.get(); }
  Status record(void* stream) const { return detail::call(qd_event_record, get(), stream); }

 private:
  explicit Event(void* handle) : owned_(handle) {}
  detail::Owned<void, detail::DestroyEvent> owned_;
};

// Device memory, released in the order of its stream, which must outlive it.
class Memory {
 public:
  Memory() = default;
  static Result<Memory> allocate(size_t bytes, void* stream) {
    void* memory = nullptr;
    if (auto made = detail::call(qd_memory_allocate, bytes, stream, &memory); !made) return made.error();
    return Memory(memory, bytes, stream);
  }
  // Allocates and enqueues the copy; `host` stays until the stream has passed it.
  template <typename T>
  static Result<Memory> copy_of(const std::vector<T>& host, void* stream) {
    auto memory = allocate(host.size() * sizeof(T), stream);
    if (!memory) return memory;
    const Status copied = detail::call(qd_copy_to_device, memory->get(), static_cast<const void*>(host.data()),
                                       host.size() * sizeof(T), stream);
    if (!copied) return copied.error();
    return memory;
  }
  // Enqueues the copy of the first host.size() elements.
  template <typename T>
  Status copy_to(std::vector<T>& host, void* stream) const {
    return detail::call(qd_copy_to_host, static_cast<void*>(host.data()), static_cast<const void*>(get()),
                        host.size() * sizeof(T), stream);
  }
  void* get() const { return owned_.get(); }
  template <typename T>
  T* as() const {
    return static_cast<T*>(get());
  }
  size_t size_bytes() const { return bytes_; }

 private:
  Memory(void* memory, size_t bytes, void* stream) : owned_(memory, stream), bytes_(bytes) {}
  detail::Owned<void, detail::ReleaseMemory> owned_;
  size_t bytes_ = 0;
};

// --- Weights ---

// Matrices as a checkpoint has them; the fields are those of qd_weights_desc.
struct WeightsSource {
  int32_t source = QD_SOURCE_UINT4B8;
  int32_t numerics = QD_NUMERICS_EXACT;
  int64_t num_parts = 1;
  int64_t part_n = 0, k = 0, group_size = 0;
  bool on_host = false;
  std::vector<const void*> codes, scales, bias;  // [experts * num_parts]; bias may be empty

  // One expert (or one part of it) more.
  void add(const void* part_codes, const void* part_scales, const void* part_bias = nullptr) {
    codes.push_back(part_codes);
    scales.push_back(part_scales);
    if (part_bias != nullptr) bias.push_back(part_bias);
  }
  Result<qd_weights_desc> desc() const {
    const auto parts = static_cast<size_t>(num_parts > 0 ? num_parts : 1);
    if (codes.size() % parts != 0 || scales.size() != codes.size() || (!bias.empty() && bias.size() != codes.size())) {
      return Error{QD_INVALID_ARGUMENT, "expected codes, scales and (all or none) bias for every part of every expert"};
    }
    qd_weights_desc out;
    qd_weights_desc_init(&out);
    out.source = source;
    out.numerics = numerics;
    out.num_experts = static_cast<int64_t>(codes.size() / parts);
    out.num_parts = num_parts;
    out.part_n = part_n;
    out.k = k;
    out.group_size = group_size;
    out.codes = codes.data();
    out.scales = scales.data();
    out.bias = bias.empty() ? nullptr : bias.data();
    out.on_host = on_host ? 1 : 0;
    return out;
  }
};

class Weights {
 public:
  // qd_weights_prepare. Released in the order of `stream` unless release_on() names another.
  static Result<Weights> prepare(const WeightsSource& source, void* stream, void* copy_stream = nullptr,
                                 const qd_allocator* allocator = nullptr) {
    const auto desc = source.desc();
    if (!desc) return desc.error();
    qd_weights* weights = nullptr;
    const Status made = detail::call(qd_weights_prepare, &*desc, allocator, stream, copy_stream, &weights);
    if (!made) return made.error();
    return Weights(weights, stream);
  }
  const qd_weights* get() const { return owned_.get(); }
  Status wait(void* stream) const { return detail::call(qd_weights_wait, get(), stream); }
  // The host waits; the value is the status word (QD_FLAG_ bits).
  Result<uint32_t> synchronize(void* stream) const {
    uint32_t flags = 0;
    if (auto done = detail::call(qd_weights_synchronize, get(), stream, &flags); !done) return done.error();
    return flags;
  }
  void release_on(void* stream) { owned_.set_extra(stream); }

 private:
  Weights(qd_weights* weights, void* stream) : owned_(weights, stream) {}
  detail::Owned<qd_weights, detail::DestroyWeights> owned_;
};

// --- The layer ---

// qd_layer_desc, qd_batch, qd_masked_batch and qd_streams with their defaults.
struct LayerDesc : qd_layer_desc {
  LayerDesc() { qd_layer_desc_init(this); }
};
struct Batch : qd_batch {
  Batch() { qd_batch_init(this); }
};
struct MaskedBatch : qd_masked_batch {
  MaskedBatch() { qd_masked_batch_init(this); }
};
struct Streams : qd_streams {
  explicit Streams(void* on = nullptr) {
    qd_streams_init(this);
    main = on;
  }
};

// Its weights must outlive it.
class Layer {
 public:
  static Result<Layer> create(const LayerDesc& desc) {
    qd_layer* layer = nullptr;
    const Status made = detail::call(qd_layer_create, static_cast<const qd_layer_desc*>(&desc), &layer);
    if (!made) return made.error();
    return Layer(layer);
  }
  const qd_layer* get() const { return owned_.get(); }
  Status can_run(int64_t max_tokens) const { return detail::call(qd_layer_can_run, get(), max_tokens); }
  Result<size_t> workspace_bytes(int64_t max_tokens) const {
    size_t bytes = 0;
    if (auto done = detail::call(qd_layer_workspace_bytes, get(), max_tokens, &bytes); !done) return done.error();
    return bytes;
  }
  Status run(const Batch& batch, const Memory& workspace, const Streams& streams, uint32_t* flags = nullptr) const {
    return run(batch, workspace.get(), workspace.size_bytes(), streams, flags);
  }
  Status run(const Batch& batch, void* workspace, size_t bytes, const Streams& streams,
             uint32_t* flags = nullptr) const {
    return detail::call(qd_layer_run, get(), static_cast<const qd_batch*>(&batch), workspace, bytes,
                        static_cast<const qd_streams*>(&streams), flags);
  }
  Status can_run_masked(int64_t max_m) const { return detail::call(qd_layer_can_run_masked, get(), max_m); }
  Result<size_t> masked_workspace_bytes(int64_t max_m) const {
    size_t bytes = 0;
    if (auto done = detail::call(qd_layer_masked_workspace_bytes, get(), max_m, &bytes); !done) return done.error();
    return bytes;
  }
  Status run_masked(const MaskedBatch& batch, void* workspace, size_t bytes, const Streams& streams,
                    uint32_t* flags = nullptr) const {
    return detail::call(qd_layer_run_masked, get(), static_cast<const qd_masked_batch*>(&batch), workspace, bytes,
                        static_cast<const qd_streams*>(&streams), flags);
  }

 private:
  explicit Layer(qd_layer* layer) : owned_(layer) {}
  detail::Owned<qd_layer, detail::DestroyLayer> owned_;
};

// out [num_rows, n] = linear(x [num_rows, k]), with weights of one matrix.
inline Result<size_t> linear_workspace_bytes(const Weights& weights, int64_t max_rows) {
  size_t bytes = 0;
  if (auto done = detail::call(qd_linear_workspace_bytes, weights.get(), max_rows, &bytes); !done) return done.error();
  return bytes;
}
inline Status run_linear(const Weights& weights, const void* x, int64_t num_rows, void* out, void* workspace,
                         size_t bytes, void* stream) {
  return detail::call(qd_linear_run, weights.get(), x, num_rows, out, workspace, bytes, stream);
}

}  // namespace quadrille::gpu

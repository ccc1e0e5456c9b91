// SPDX-License-Identifier: Apache-2.0
// Where host layers compute, their weights, and the linear layer, over moe/linear.h and prepare/prepare_w4.h.
#include "api/host.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "api/call.h"
#include "api/layer_desc.h"
#include "api/weights.h"
#include "numerics/bf16.h"
#include "prepare/shard.h"

namespace quadrille::api {
namespace {

Result<std::shared_ptr<HostPlace>> make_place(int32_t num_threads, const char* kernels) {
  if (num_threads < 0) {
    return make_error(ErrorCode::kInvalidArgument,
                      "num_threads: expected 0 (one for each usable core) or more, found {}", num_threads);
  }
  QD_TRY(const kernels::KernelTable* table, kernels::select_table(kernels == nullptr ? "" : kernels));
  return std::make_shared<HostPlace>(num_threads, table);
}

// Why the prepared codes cannot lie where the checkpoint's lie.
Status check_in_place(const qd_weights_desc& desc) {
  if (desc.source == QD_SOURCE_INT8) {
    return make_error(ErrorCode::kUnsupported, "in place: expected packed words (uint4b8 or int4), found int8 codes");
  }
  const int64_t n = desc.part_n * desc.num_parts;
  if (n % 16 != 0 || desc.k % 32 != 0) {
    return make_error(ErrorCode::kUnsupported,
                      "in place: expected out features in multiples of 16 and in features in multiples of 32, found "
                      "[{}, {}]",
                      n, desc.k);
  }
  const auto part_bytes = static_cast<uintptr_t>(desc.part_n * desc.k / 2);
  std::vector<uintptr_t> firsts;
  for (int64_t e = 0; e < desc.num_experts; ++e) {
    const auto first = reinterpret_cast<uintptr_t>(desc.codes[e * desc.num_parts]);
    firsts.push_back(first);
    if (first % 64 != 0) {
      return make_error(ErrorCode::kUnsupported,
                        "in place: expert {}: expected codes at a multiple of 64 bytes, found an address {} behind one",
                        e, first % 64);
    }
    if (desc.num_parts == 2 && reinterpret_cast<uintptr_t>(desc.codes[2 * e + 1]) != first + part_bytes) {
      return make_error(ErrorCode::kUnsupported, "in place: expert {}: expected up behind gate in one tensor", e);
    }
  }
  std::sort(firsts.begin(), firsts.end());
  for (size_t e = 1; e < firsts.size(); ++e) {
    if (firsts[e] - firsts[e - 1] < part_bytes * static_cast<uintptr_t>(desc.num_parts)) {
      return make_error(ErrorCode::kInvalidArgument,
                        "in place: expected memory of its own for each expert, found experts that share some");
    }
  }
  return {};
}

Status check_scales(const qd_weights_desc& desc) {
  for (int64_t e = 0; e < desc.num_experts; ++e) {
    const auto parts = canonical_parts(desc, e);
    QD_TRY_STATUS(prepare::check_canonical(parts));
    for (const prepare::CanonicalW4& part : parts) {
      if (auto finite = prepare::row_absmax(part); !finite) return finite.error().in(fmt::format("expert {}", e));
    }
  }
  return {};
}

Status take_bias(const qd_weights_desc& desc, HostWeights* weights) {
  if (desc.bias == nullptr) return {};
  const auto part_n = static_cast<size_t>(desc.part_n);
  for (int64_t i = 0; i < desc.num_experts * desc.num_parts; ++i) {
    QD_TRY_STATUS(check_given(desc.bias[i], "bias of a part"));
    const auto* bias = static_cast<const float*>(desc.bias[i]);
    weights->bias.insert(weights->bias.end(), bias, bias + part_n);
  }
  const size_t n = part_n * static_cast<size_t>(desc.num_parts);
  for (size_t e = 0; e < static_cast<size_t>(desc.num_experts); ++e) {
    weights->bias_views.push_back(weights->bias.data() + e * n);
  }
  return {};
}

Result<std::shared_ptr<HostWeights>> prepare_weights(HostPlace& place, const qd_weights_desc& desc, bool in_place) {
  if (in_place) {
    QD_TRY_STATUS(check_in_place(desc));
    QD_TRY_STATUS(check_scales(desc));
  }
  auto weights = std::make_shared<HostWeights>();
  weights->numerics = static_cast<kernels::Numerics>(desc.numerics);
  weights->num_parts = desc.num_parts;
  QD_TRY_STATUS(take_bias(desc, weights.get()));
  for (int64_t e = 0; e < desc.num_experts; ++e) {
    auto made = prepare::prepare_w4(canonical_parts(desc, e), weights->numerics, place.pool.get());
    if (!made) return made.error().in(fmt::format("expert {}", e));
    if (in_place) {
      void* home = const_cast<void*>(desc.codes[e * desc.num_parts]);
      std::memcpy(home, made->codes.data(), static_cast<size_t>(made->codes.size_bytes()));
      made->codes = prepare::AlignedBuffer<uint32_t>::borrow(static_cast<const uint32_t*>(home), made->codes.size());
    }
    weights->matrices.push_back(std::move(*made));
  }
  for (const prepare::PreparedW4& matrix : weights->matrices) weights->views.push_back(matrix.view());
  weights->linear = {desc.num_experts,
                     desc.part_n * desc.num_parts,
                     desc.k,
                     desc.group_size,
                     weights->views.data(),
                     weights->bias_views.empty() ? nullptr : weights->bias_views.data()};
  return weights;
}

Status run_linear(HostPlace& place, const HostWeights& weights, int32_t rounding, int32_t type, const void* x,
                  int64_t num_rows, void* out) {
  QD_TRY_STATUS(place.check_process());
  QD_TRY_STATUS(check_rounding(rounding));
  QD_TRY_STATUS(check_activation_type(type));
  const moe::W4Linear& linear = weights.linear;
  if (linear.num_experts != 1 || weights.num_parts != 1) {
    return make_error(ErrorCode::kInvalidArgument, "linear: expected weights of one expert and part, found {} and {}",
                      linear.num_experts, weights.num_parts);
  }
  QD_TRY_STATUS(kernels::check_w4a8_shape(linear.n, linear.k, linear.group_size));
  if (num_rows < 0) return make_error(ErrorCode::kInvalidArgument, "num_rows: expected at least 0, found {}", num_rows);
  if (num_rows == 0) return {};
  QD_TRY_STATUS(check_given(x, "x"));
  QD_TRY_STATUS(check_given(out, "out"));
  const BorrowedScratch scratch(place);
  const moe::Execution execution = execution_of(place, scratch, weights.numerics, rounding);
  moe::LinearInput input(widen_rows(execution, type, x, num_rows, linear.k), num_rows, linear.k);
  float* result = scratch.get()->take<float>(num_rows * linear.n);
  moe::apply_linear(linear, &input, execution, result);
  narrow_rows(execution, type, result, num_rows, linear.n, out);
  return {};
}

}  // namespace

Status HostPlace::check_process() const {
  if (process == ::getpid()) return {};
  return make_error(ErrorCode::kInvalidArgument,
                    "host: expected the process that made it, found one that was forked from it, without its threads: "
                    "make host and layers after the fork");
}

std::vector<prepare::CanonicalW4> canonical_parts(const qd_weights_desc& desc, int64_t expert) {
  std::vector<prepare::CanonicalW4> parts;
  for (int64_t part = 0; part < desc.num_parts; ++part) {
    const int64_t at = expert * desc.num_parts + part;
    prepare::CanonicalW4 matrix;
    matrix.n = desc.part_n;
    matrix.k = desc.k;
    matrix.group_size = desc.group_size;
    (desc.source == QD_SOURCE_INT8 ? matrix.codes : matrix.packed) = desc.codes[at];
    matrix.packed_source = desc.source == QD_SOURCE_INT4 ? kernels::W4Source::kInt4 : kernels::W4Source::kUint4b8;
    matrix.scales = desc.scales[at];
    parts.push_back(matrix);
  }
  return parts;
}

Status check_host_desc(const qd_weights_desc* desc) {
  QD_TRY_STATUS(check_desc(desc));
  if (desc->on_host != 0) return {};
  return make_error(ErrorCode::kInvalidArgument, "on_host: expected weights in host memory, found 0");
}

Status check_rounding(int32_t rounding) {
  return check_enum(rounding, QD_ROUND_F32, "rounding", "0 (bf16), 1 (f32)");
}

Status check_activation_type(int32_t type) {
  if (type == QD_TYPE_BF16 || type == QD_TYPE_F32) return {};
  return make_error(ErrorCode::kUnsupported, "type of x and out: expected 0 (bf16) or 2 (fp32), found {}", type);
}

float* widen_rows(const moe::Execution& execution, int32_t type, const void* x, int64_t num_rows, int64_t width) {
  float* rows = execution.kernels.scratch->take<float>(num_rows * width);
  if (type == QD_TYPE_F32) {
    std::memcpy(rows, x, static_cast<size_t>(num_rows * width) * sizeof(float));
    moe::round_values(execution, rows, num_rows * width);
    return rows;
  }
  const auto* codes = static_cast<const uint16_t*>(x);
  execution.kernels.pool->run(num_rows, [&](int64_t row) {
    for (int64_t i = row * width; i < (row + 1) * width; ++i) rows[i] = numerics::bf16_to_f32(codes[i]);
  });
  return rows;
}

void narrow_rows(const moe::Execution& execution, int32_t type, const float* x, int64_t num_rows, int64_t width,
                 void* out) {
  if (type == QD_TYPE_F32) {
    std::memcpy(out, x, static_cast<size_t>(num_rows * width) * sizeof(float));
    return;
  }
  auto* codes = static_cast<uint16_t*>(out);
  execution.kernels.pool->run(num_rows, [&](int64_t row) {
    for (int64_t i = row * width; i < (row + 1) * width; ++i) codes[i] = numerics::bf16_from_f32(x[i]);
  });
}

moe::Execution execution_of(HostPlace& place, const BorrowedScratch& scratch, kernels::Numerics numerics,
                            int32_t rounding) {
  moe::Execution execution;
  execution.table = place.table;
  execution.kernels = {place.pool.get(), scratch.get()};
  execution.numerics = numerics;
  execution.rounding = rounding == QD_ROUND_F32 ? kernels::Rounding::kF32 : kernels::Rounding::kBf16;
  return execution;
}

}  // namespace quadrille::api

using quadrille::Status;
using quadrille::api::check_given;
using quadrille::api::guarded;

extern "C" {

qd_result qd_host_create(int32_t num_threads, const char* kernels, qd_host** host, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(host, "host (where the handle goes)"));
    *host = nullptr;
    QD_TRY(auto place, quadrille::api::make_place(num_threads, kernels));
    *host = new qd_host{std::move(place)};
    return {};
  });
}

void qd_host_destroy(qd_host* host) {
  delete host;
}

const char* qd_host_kernels(const qd_host* host) {
  return host == nullptr ? "" : host->place->table->name;
}

int32_t qd_host_num_threads(const qd_host* host) {
  return host == nullptr ? 0 : host->place->pool->num_threads();
}

qd_result qd_host_weights_prepare(const qd_host* host, const qd_weights_desc* desc, int32_t in_place,
                                  qd_host_weights** weights, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(weights, "weights (where the handle goes)"));
    *weights = nullptr;
    QD_TRY_STATUS(check_given(host, "host"));
    QD_TRY_STATUS(host->place->check_process());
    QD_TRY_STATUS(quadrille::api::check_host_desc(desc));
    QD_TRY(auto made, quadrille::api::prepare_weights(*host->place, *desc, in_place != 0));
    *weights = new qd_host_weights{std::move(made)};
    return {};
  });
}

qd_result qd_host_weights_check_in_place(const qd_weights_desc* desc, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(quadrille::api::check_host_desc(desc));
    QD_TRY_STATUS(quadrille::api::check_in_place(*desc));
    return quadrille::api::check_scales(*desc);
  });
}

void qd_host_weights_destroy(qd_host_weights* weights) {
  delete weights;
}

uint64_t qd_host_weights_bytes(const qd_host_weights* weights) {
  if (weights == nullptr) return 0;
  uint64_t bytes = weights->weights->bias.size() * sizeof(float);
  for (const auto& matrix : weights->weights->matrices) bytes += static_cast<uint64_t>(matrix.size_bytes());
  return bytes;
}

qd_result qd_host_linear_run(const qd_host* host, const qd_host_weights* weights, int32_t rounding, int32_t type,
                             const void* x, int64_t num_rows, void* out, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(host, "host"));
    QD_TRY_STATUS(check_given(weights, "weights"));
    return quadrille::api::run_linear(*host->place, *weights->weights, rounding, type, x, num_rows, out);
  });
}

}  // extern "C"

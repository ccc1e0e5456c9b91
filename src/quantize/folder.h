// SPDX-License-Identifier: Apache-2.0
// quadrille quantize: a bf16/f16/f32 Hugging Face folder -> a compressed-tensors pack-quantized W4A8 folder that the
// field's loaders read. Streams tensor by tensor; the output folder appears under its name only when it is whole.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/log.h"
#include "core/result.h"
#include "quantize/error_report.h"
#include "quantize/w4_group.h"

namespace quadrille::quantize {

struct QuantizeOptions {
  int64_t group_size = 128;  // 32, 64, 128; 0 = one scale a channel
  Quotient quotient = Quotient::kF32;
  // Added to default_ignore(): 're:REGEX' or a module path, as in compressed-tensors.
  std::vector<std::string> ignore;
  int threads = 0;  // 0 = one a usable core
  LogSink log = no_log();
};

struct QuantizeProgress {
  int64_t tensors_done = 0;
  int64_t tensors_total = 0;
  uint64_t bytes_done = 0;  // of the input
  uint64_t bytes_total = 0;
  std::string tensor;  // in work
};
using QuantizeProgressCallback = std::function<void(const QuantizeProgress&)>;

struct QuantizeReport {
  ErrorReport errors;                   // one entry a quantised tensor
  std::vector<std::string> left_alone;  // 2-D weights that were copied, with the rule: "lm_head (ignore 'lm_head')"
  std::vector<std::string> files;       // of the output folder
  uint64_t bytes_in = 0;                // of tensors
  uint64_t bytes_out = 0;
  double seconds = 0;
};

// lm_head, router gates and shared-expert gates.
const std::vector<std::string>& default_ignore();
// True for the name of a linear layer of a decoder layer that is quantised unless ignored (…_proj.weight,
// experts.N.w1.weight).
bool is_quantizable_name(const std::string& tensor_name);

// Quantises folder `in` into the new folder `out`. Everything is checked before anything is written. Writes into
// "OUT.partial", renames at the end; a run that was killed leaves only that, and the next run to the same OUT removes
// it. `progress` is called from this thread. Errors: kInvalidArgument (OUT exists, group size that does not divide a
// K: names tensor, K, legal values), kUnsupported (already quantised, fused experts), kInvalidData, kIo, kCancelled.
Result<QuantizeReport> quantize_folder(const std::string& in, const std::string& out, const QuantizeOptions& options,
                                       const QuantizeProgressCallback& progress = {},
                                       const std::atomic<bool>* cancel = nullptr);

}  // namespace quadrille::quantize

// SPDX-License-Identifier: Apache-2.0
// quadrille prepare: a checkpoint folder -> a folder that opens as a mapping (docs/prepared.md). Layer by layer; the
// folder appears under its name only when it is whole.
#pragma once

#include <string>
#include <vector>

#include "core/result.h"
#include "model/model.h"

namespace quadrille::model {

struct PrepareReport {
  std::vector<std::string> files;  // of the new folder
  std::vector<std::string> notes;  // what was rounded on the way
  uint64_t bytes_in = 0;           // of the checkpoint's tensors
  uint64_t bytes_out = 0;          // of the prepared file
  double seconds = 0;
};

// Of `options`: numerics, pool, run_weight_only_as_fp8, round_scales, log, progress, cancel. Works in "OUT.partial",
// renames at the end; a run that was killed leaves only that, and the next run to the same OUT removes it. Errors:
// those of Model::load() for the checkpoint; kInvalidArgument (OUT exists); kCapacity (no room on the disk); kIo;
// kCancelled.
Result<PrepareReport> prepare_folder(const std::string& folder, const std::string& out, const LoadOptions& options);

}  // namespace quadrille::model

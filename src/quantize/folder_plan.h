// SPDX-License-Identifier: Apache-2.0
// Inside of quantize_folder: what becomes of every tensor and file, decided and checked before anything is written.
#pragma once

#include <string>
#include <vector>

#include "core/result.h"
#include "formats/checkpoint.h"
#include "formats/json.h"
#include "formats/safetensors_writer.h"
#include "quantize/folder.h"

namespace quadrille::quantize {

struct PlannedTensor {
  const formats::TensorView* source = nullptr;
  std::string module;  // path without ".weight"; "" for a tensor that is copied
  bool is_quantized = false;
};

// One output file; it has the name of its input file.
struct PlannedShard {
  std::string file;
  std::vector<PlannedTensor> tensors;
  std::vector<formats::TensorDeclaration> declarations;
};

struct FolderPlan {
  std::vector<PlannedShard> shards;
  std::vector<std::string> left_alone;    // see QuantizeReport
  std::vector<std::string> copied_files;  // tokenizer and the like, names inside the folder
  formats::Json config;                   // config.json of the output
  uint64_t bytes_in = 0;
  uint64_t bytes_out = 0;
  int64_t num_tensors = 0;
};

// `config` is the parsed config.json of the input. Errors as quantize_folder().
Result<FolderPlan> plan_folder(const formats::Checkpoint& checkpoint, const formats::Json& config,
                               const QuantizeOptions& options);

// The quantization_config of a folder that is written with `options`: its group size, and `ignore`.
formats::Json quantization_config(const QuantizeOptions& options, const std::vector<std::string>& ignore);

// Names of the files beside the weights that a folder made from `folder` takes along (tokenizer, template, licence;
// config.json is not among them), ascending. kIo.
Status list_copied_files(const std::string& folder, std::vector<std::string>& files);

}  // namespace quadrille::quantize

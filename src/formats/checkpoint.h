// SPDX-License-Identifier: Apache-2.0
// The tensors of a Hugging Face folder: one model.safetensors, or the shards that model.safetensors.index.json names.
// Called by the model loader, by quantize and by inspect.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/log.h"
#include "core/result.h"
#include "formats/safetensors.h"
#include "formats/tensor_view.h"

namespace quadrille::formats {

class Checkpoint {
 public:
  // Opens every file that the index names (only those), or model.safetensors when there is no index. Every tensor of
  // the index must be in its shard, every file name must be a plain name inside the folder. Errors: kNotFound, kIo,
  // kInvalidData. `log` gets warnings (a tensor in two shards, a wrong total size).
  static Result<Checkpoint> open(const std::string& folder, const LogSink& log = no_log());

  // Null when there is no such tensor.
  const TensorView* find(const std::string& name) const;
  // The same, as an error that names the folder.
  Result<const TensorView*> require(const std::string& name) const;
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  std::vector<std::string> names() const;
  const std::string& folder() const { return folder_; }
  // Bytes of all tensors.
  uint64_t total_bytes() const { return total_bytes_; }

  bool is_sharded() const { return is_sharded_; }
  // File names inside the folder, ascending.
  const std::vector<std::string>& shards() const { return shards_; }
  // File name of the shard that holds the tensor; "" when there is no such tensor.
  std::string shard_of(const std::string& name) const;
  // __metadata__ of a shard.
  const std::map<std::string, std::string>& shard_metadata(const std::string& shard) const;

 private:
  Checkpoint() = default;
  std::string folder_;
  bool is_sharded_ = false;
  std::vector<std::string> shards_;
  std::map<std::string, std::map<std::string, std::string>> metadata_;
  std::map<std::string, TensorView> tensors_;
  uint64_t total_bytes_ = 0;
};

}  // namespace quadrille::formats

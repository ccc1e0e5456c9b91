// SPDX-License-Identifier: Apache-2.0
// A checkpoint folder of random weights in a model's true shape, compressed-tensors pack-quantized: what loaders are
// measured and tested with where nobody can download the model. Written by quadrille make-model.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/result.h"
#include "core/thread_pool.h"
#include "formats/json.h"

namespace quadrille::model {

struct RandomFolderOptions {
  uint64_t seed = 1;
  int64_t group_size = 128;                   // 32, 64, 128; 0 = one scale a channel
  uint64_t shard_bytes = uint64_t{4} << 30;   // of a file; a tensor that is larger has one of its own
  ThreadPool* pool = nullptr;                 // required
  const std::atomic<bool>* cancel = nullptr;  // true: kCancelled
  std::function<void(uint64_t done, uint64_t total, const std::string& module)> progress;  // bytes; one call at a time
};

struct RandomFolderReport {
  std::vector<std::string> files;
  uint64_t bytes = 0;  // of tensors
  int64_t num_tensors = 0;
  double seconds = 0;
};

// Writes `out`, which must not exist, for the model of `config` (the object of a config.json without a quantisation;
// `where` heads errors about it): every linear layer of a decoder layer in 4 bits but routers and their like, the rest
// in bf16. Codes and scales are those of RandomModel: finite logits, tokens that spread over the experts. Every module
// has its own stream of numbers: the bytes depend on config, seed, group and shard size alone, not on the threads.
// The weights are left to the system to write out: a folder that a seed makes again needs no flush. Errors:
// kInvalidArgument (OUT exists, a group size that does not divide a K), those of make_model_config(), kCapacity (too
// little space, before anything is written), kIo, kCancelled. Then nothing stays but what a kill leaves:
// OUT.partial, which the next run removes.
Result<RandomFolderReport> write_random_folder(const formats::Json& config, const std::string& where,
                                               const std::string& out, const RandomFolderOptions& options);

}  // namespace quadrille::model

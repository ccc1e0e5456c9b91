// SPDX-License-Identifier: Apache-2.0
// What a checkpoint folder says before a weight of it is read. Called by model.cpp, and by device_model.cpp while the
// GPU wakes up.
#pragma once

#include <string>

#include "core/result.h"
#include "model/config.h"
#include "model/inventory.h"
#include "model/model.h"

namespace quadrille::model {

struct OpenFolder {
  ModelConfig config;
  Inventory inventory;
};

// The inventory of a folder of this config; a note about tensors that are no part of the model. Errors: those of
// take_inventory() and of config.json's quantisation.
Result<Inventory> open_inventory(const std::string& path, const ModelConfig& config, const LoadOptions& options);

// Errors: those of Model::load() about config, headers, names and shapes; kUnsupported for W4A16 without its option.
Result<OpenFolder> open_folder(const std::string& path, const LoadOptions& options);

}  // namespace quadrille::model

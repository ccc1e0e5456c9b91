// SPDX-License-Identifier: Apache-2.0
#include "model/open_folder.h"

#include "formats/hf_config.h"
#include "model/load_weights.h"

namespace quadrille::model {

Result<Inventory> open_inventory(const std::string& path, const ModelConfig& config, const LoadOptions& options) {
  QD_TRY(const formats::HfConfig raw, formats::read_hf_config(path));
  QD_TRY(Inventory inventory, take_inventory(path, raw, config, options.log));
  if (!inventory.unused_tensors.empty()) {
    options.log(LogLevel::kInfo,
                fmt::format("{}: {} tensors are no part of the model and stay unread, the first is '{}'", path,
                            inventory.unused_tensors.size(), inventory.unused_tensors[0]));
  }
  return inventory;
}

Result<OpenFolder> open_folder(const std::string& path, const LoadOptions& options) {
  QD_TRY(ModelConfig config, read_model_config(path));
  QD_TRY(Inventory inventory, open_inventory(path, config, options));
  QD_TRY_STATUS(check_weight_only(inventory, options));
  return OpenFolder{std::move(config), std::move(inventory)};
}

}  // namespace quadrille::model

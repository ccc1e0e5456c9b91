// SPDX-License-Identifier: Apache-2.0
// Loads as a model is loaded, and writes each layer as soon as it stands.
#include "model/prepare_folder.h"

#include <chrono>
#include <filesystem>

#include "formats/json.h"
#include "formats/prepared_file.h"
#include "model/inventory.h"
#include "model/load_weights.h"
#include "model/prepared_weights.h"
#include "quantize/folder_plan.h"
#include "quantize/partial_folder.h"

namespace quadrille::model {
namespace {

namespace fs = std::filesystem;
constexpr uint64_t kMaxCopiedBytes = 256ull << 20;

// Prepared bytes are those of the checkpoint, padding aside.
Status check_space(const Inventory& inventory, const std::string& folder) {
  uint64_t bytes = 0;
  for (const ModuleSource* source : inventory.modules()) bytes += source->disk_bytes();
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (error || space.available >= bytes) return {};
  return make_error(ErrorCode::kCapacity, "{}: expected {} bytes of free space, found {}", folder, bytes,
                    space.available);
}

Status copy_files(const std::string& from, const std::string& to, std::vector<std::string>* files) {
  QD_TRY_STATUS(quantize::list_copied_files(from, *files));
  files->emplace_back("config.json");
  for (const std::string& name : *files) {
    QD_TRY(const std::string text, formats::read_text_file(from + "/" + name, kMaxCopiedBytes));
    QD_TRY_STATUS(quantize::write_new_file(to + "/" + name, text));
  }
  return {};
}

}  // namespace

Result<PrepareReport> prepare_folder(const std::string& folder, const std::string& out, const LoadOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  QD_TRY(const formats::HfConfig raw, formats::read_hf_config(folder));
  QD_TRY(const ModelConfig config, read_model_config(folder));
  QD_TRY(const Inventory inventory, take_inventory(folder, raw, config, options.log));
  QD_TRY_STATUS(check_weight_only(inventory, options));

  QD_TRY(quantize::PartialFolder partial, quantize::PartialFolder::create(out));
  QD_TRY_STATUS(check_space(inventory, partial.path()));
  QD_TRY(formats::PreparedWriter writer,
         formats::PreparedWriter::create(partial.path() + "/" + formats::kPreparedFileName,
                                         arithmetic_name(options.numerics)));
  const auto write = [&](ModelWeights* weights, int64_t layer) -> Status {
    if (layer >= 0) {
      QD_TRY_STATUS(write_layer(weights->layers[layer], layer, config, &writer));
      weights->layers[layer] = {};
      return {};
    }
    QD_TRY_STATUS(write_ends(*weights, &writer));
    weights->embedding = {};
    weights->lm_head = {};
    return {};
  };
  QD_TRY(const LoadedWeights loaded, load_weights(inventory, config, options, nullptr, nullptr, write));
  PrepareReport report;
  report.notes = loaded.notes;
  QD_TRY_STATUS(writer.finish(report.notes));
  QD_TRY_STATUS(copy_files(folder, partial.path(), &report.files));
  for (const ModuleSource* source : inventory.modules()) report.bytes_in += source->disk_bytes();
  std::error_code error;
  report.bytes_out = fs::file_size(partial.path() + "/" + formats::kPreparedFileName, error);
  QD_TRY_STATUS(partial.commit());
  report.files.emplace_back(formats::kPreparedFileName);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace quadrille::model

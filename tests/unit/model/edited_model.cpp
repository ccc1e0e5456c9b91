// SPDX-License-Identifier: Apache-2.0
#include "edited_model.h"

#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/check.h"
#include "formats/checkpoint.h"
#include "formats/safetensors_writer.h"

namespace quadrille::testing {

void EditedTensor::set16(size_t index, uint16_t value) {
  std::memcpy(bytes.data() + 2 * index, &value, 2);
}
void EditedTensor::set32(size_t index, uint32_t value) {
  std::memcpy(bytes.data() + 4 * index, &value, 4);
}

void EditedTensor::widen() {
  QD_CHECK(dtype == formats::DType::kBF16, "widen() takes BF16");
  std::vector<std::byte> wide(2 * bytes.size());
  for (size_t i = 0; i < bytes.size() / 2; ++i) std::memcpy(wide.data() + 4 * i + 2, bytes.data() + 2 * i, 2);
  bytes = std::move(wide);
  dtype = formats::DType::kF32;
}

EditedTensor EditedTensor::zeros(std::vector<int64_t> shape) {
  int64_t count = 2;
  for (const int64_t size : shape) count *= size;
  return {formats::DType::kBF16, std::move(shape), std::vector<std::byte>(count)};
}

EditedModel::EditedModel(const std::string& folder) {
  auto checkpoint = formats::Checkpoint::open(folder);
  QD_CHECK(checkpoint.ok(), checkpoint.ok() ? "" : checkpoint.error().message);
  for (const auto& [name, view] : checkpoint->tensors()) {
    tensors[name] = {view.dtype, view.shape, {view.bytes.begin(), view.bytes.end()}};
  }
  auto json = formats::parse_json_file(folder + "/config.json");
  QD_CHECK(json.ok(), json.ok() ? "" : json.error().message);
  config = *json;
}

EditedModel::~EditedModel() {
  std::error_code ignored;
  if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
}

EditedTensor& EditedModel::tensor(const std::string& name) {
  QD_CHECK(tensors.contains(name), "no tensor " + name);
  return tensors[name];
}

const std::string& EditedModel::write() {
  if (folder_.empty()) {
    std::string pattern = (std::filesystem::temp_directory_path() / "quadrille_model_XXXXXX").string();
    QD_CHECK(mkdtemp(pattern.data()) != nullptr, "a temporary folder");
    folder_ = pattern;
  }
  std::vector<formats::TensorDeclaration> declarations;
  for (const auto& [name, tensor] : tensors) declarations.push_back({name, tensor.dtype, tensor.shape});
  auto writer = formats::SafetensorsWriter::create(folder_ + "/model.safetensors", declarations);
  QD_CHECK(writer.ok(), writer.ok() ? "" : writer.error().message);
  for (const auto& [name, tensor] : tensors) QD_CHECK(writer->write(name, tensor.bytes).ok(), name);
  QD_CHECK(writer->finish().ok(), "finish");
  std::ofstream(folder_ + "/config.json") << config.dump();
  return folder_;
}

}  // namespace quadrille::testing

// SPDX-License-Identifier: Apache-2.0
#include "formats/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <future>
#include <set>
#include <thread>

#include "formats/json.h"
#include "formats/prepared_file.h"

namespace quadrille::formats {
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
using WeightMap = std::map<std::string, std::string>;  // tensor -> file name

bool exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

// A name of a file inside the folder: nothing that leads elsewhere.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name.size() <= 255 && name != "." && name.find("..") == std::string::npos &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
}

Result<WeightMap> read_weight_map(const Json& json, const std::string& path) {
  if (!json.is_object())
    return make_error(ErrorCode::kInvalidData, "{}: expected an object with weight_map, found {}", path,
                      json_excerpt(json));
  const JsonObject index(json, path);
  QD_TRY(const std::optional<JsonObject> map, index.find_object("weight_map"));
  if (!map) return index.error("weight_map", "an object tensor name -> file name");
  WeightMap result;
  for (const auto& [tensor, file] : map->json().items()) {
    if (!file.is_string()) return map->error(tensor, "the name of a file");
    const auto name = file.get<std::string>();
    if (!is_plain_name(name))
      return make_error(ErrorCode::kInvalidData,
                        "{}: tensor '{}': expected the name of a file inside the folder, found {}; an index may not "
                        "point outside of its folder",
                        path, tensor, json_excerpt(file));
    result.emplace(tensor, name);
  }
  if (result.empty()) return index.error("weight_map", "an object with at least one tensor");
  return result;
}

void warn_total_size(const Json& json, uint64_t total, const std::string& path, const LogSink& log) {
  const auto metadata = json.find("metadata");
  if (metadata == json.end() || !metadata->is_object()) return;
  const auto size = metadata->find("total_size");
  if (size == metadata->end() || !size->is_number_unsigned() || size->get<uint64_t>() == total) return;
  log(LogLevel::kDebug,
      fmt::format("{}: total_size says {} bytes, the tensors have {}", path, size->get<uint64_t>(), total));
}

// Opens files by name, several at once: most of the time is their headers'. The first error in the order of the names.
Result<std::vector<SafetensorsFile>> open_shards(const std::string& folder, const std::vector<std::string>& shards) {
  const auto open_one = [&](const std::string& shard) { return SafetensorsFile::open(folder + "/" + shard); };
  const size_t at_once = std::clamp<size_t>(std::thread::hardware_concurrency(), 1, 16);
  std::vector<SafetensorsFile> files;
  for (size_t begin = 0; begin < shards.size(); begin += at_once) {
    const size_t end = std::min(shards.size(), begin + at_once);
    std::vector<std::future<Result<SafetensorsFile>>> opened;
    for (size_t i = begin; i < end; ++i) opened.push_back(std::async(std::launch::async, open_one, shards[i]));
    for (size_t i = begin; i < end; ++i) {
      Result<SafetensorsFile> file = opened[i - begin].get();
      if (!file) return file.error().in(fmt::format("{} names {}", kIndexFile, shards[i]));
      files.push_back(std::move(*file));
    }
  }
  return files;
}

Error missing_in_shard(const std::string& index, const std::string& tensor, const std::string& shard) {
  return make_error(
      ErrorCode::kInvalidData,
      "{}: tensor '{}': expected in {}, which does not have it; the folder mixes two downloads or a shard "
      "is damaged",
      index, tensor, shard);
}

}  // namespace

Result<Checkpoint> Checkpoint::open(const std::string& folder, const LogSink& log) {
  Checkpoint result;
  result.folder_ = folder;
  const std::string index_path = folder + "/" + kIndexFile;
  const std::string single_path = folder + "/" + kSingleFile;
  if (!exists(folder)) return make_error(ErrorCode::kNotFound, "{}: there is no such folder", folder);
  result.is_sharded_ = exists(index_path);
  if (!result.is_sharded_) {
    if (!exists(single_path) && is_prepared_folder(folder)) return prepared_instead_of_checkpoint(folder);
    if (!exists(single_path))
      return make_error(ErrorCode::kNotFound, "{}: expected {} or {}, found neither", folder, kSingleFile, kIndexFile);
    QD_TRY(const SafetensorsFile file, SafetensorsFile::open(single_path));
    result.shards_ = {kSingleFile};
    result.metadata_[kSingleFile] = file.metadata();
    result.tensors_ = file.tensors();
    for (const auto& [name, view] : result.tensors_) result.total_bytes_ += view.bytes.size();
    return result;
  }

  QD_TRY(const Json json, parse_json_file(index_path, {.max_bytes = 256ull << 20, .max_depth = 8}));
  QD_TRY(const WeightMap map, read_weight_map(json, index_path));
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : map) shards.insert(shard);
  result.shards_.assign(shards.begin(), shards.end());
  size_t found = 0;
  QD_TRY(const std::vector<SafetensorsFile> files, open_shards(folder, result.shards_));
  for (size_t i = 0; i < files.size(); ++i) {
    const std::string& shard = result.shards_[i];
    result.metadata_[shard] = files[i].metadata();
    for (const auto& [name, view] : files[i].tensors()) {
      const auto mapped = map.find(name);
      if (mapped == map.end()) continue;  // legal: a shard may hold more than the map
      if (mapped->second != shard) {
        log(LogLevel::kWarning, fmt::format("{}: the index takes this tensor from {}", view.where(), mapped->second));
        continue;
      }
      result.tensors_.emplace(name, view);
      result.total_bytes_ += view.bytes.size();
      ++found;
    }
  }
  if (found != map.size())
    for (const auto& [tensor, shard] : map)
      if (result.find(tensor) == nullptr) return missing_in_shard(index_path, tensor, shard);
  warn_total_size(json, result.total_bytes_, index_path, log);
  return result;
}

const TensorView* Checkpoint::find(const std::string& name) const {
  const auto place = tensors_.find(name);
  return place == tensors_.end() ? nullptr : &place->second;
}

Result<const TensorView*> Checkpoint::require(const std::string& name) const {
  const TensorView* view = find(name);
  if (view == nullptr)
    return make_error(ErrorCode::kNotFound, "{}: expected a tensor '{}', found none of that name", folder_, name);
  return view;
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> result;
  result.reserve(tensors_.size());
  for (const auto& [name, view] : tensors_) result.push_back(name);
  return result;
}

std::string Checkpoint::shard_of(const std::string& name) const {
  const TensorView* view = find(name);
  return view == nullptr ? "" : std::filesystem::path(view->file->path()).filename().string();
}

const std::map<std::string, std::string>& Checkpoint::shard_metadata(const std::string& shard) const {
  static const std::map<std::string, std::string> kEmpty;
  const auto place = metadata_.find(shard);
  return place == metadata_.end() ? kEmpty : place->second;
}

}  // namespace quadrille::formats

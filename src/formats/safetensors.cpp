// SPDX-License-Identifier: Apache-2.0
#include "formats/safetensors.h"

#include <algorithm>
#include <cstring>
#include <tuple>

#include "formats/json.h"

namespace quadrille::formats {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr uint64_t kMaxOffset = uint64_t{1} << 48;  // also of a dimension
constexpr size_t kMaxRank = 8;
constexpr size_t kMaxNameBytes = 4096;
constexpr const char* kMetadataKey = "__metadata__";
constexpr const char* kCopyAgain = "the file is damaged or cut off: copy or download it again";

Error invalid(std::string_view where, std::string_view text) {
  return make_error(ErrorCode::kInvalidData, "{}: {}", where, text);
}

// An exact integer from 0 to 2^48.
std::optional<uint64_t> bounded_unsigned(const Json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  const auto number = value.get<uint64_t>();
  return number <= kMaxOffset ? std::optional(number) : std::nullopt;
}

Result<uint64_t> header_length(std::span<const std::byte> head, uint64_t file_size, std::string_view where) {
  if (file_size < 8 || head.size() < 8)
    return invalid(where,
                   fmt::format("expected at least 8 bytes of a safetensors file, found {}; {}", file_size, kCopyAgain));
  uint64_t length = 0;
  for (int i = 0; i < 8; ++i) length |= static_cast<uint64_t>(head[i]) << (8 * i);
  if (length > kMaxHeaderBytes)
    return invalid(where, fmt::format("expected a header of at most {} bytes, found a length of {}: not a safetensors "
                                      "file, or damaged",
                                      kMaxHeaderBytes, length));
  if (length > file_size - 8)
    return invalid(where, fmt::format("expected a header of {} bytes, the file has only {} behind its length; {}",
                                      length, file_size - 8, kCopyAgain));
  return length;
}

Result<std::map<std::string, std::string>> read_metadata(const Json& value, std::string_view where) {
  std::map<std::string, std::string> metadata;
  if (value.is_null()) return metadata;
  if (!value.is_object())
    return invalid(where,
                   fmt::format("expected an object of strings as {}, found {}", kMetadataKey, json_excerpt(value)));
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string())
      return invalid(where,
                     fmt::format("expected a string as {} '{}', found {}", kMetadataKey, key, json_excerpt(text)));
    metadata.emplace(key, text.get<std::string>());
  }
  return metadata;
}

Result<SafetensorsHeader::Record> read_record(const std::string& name, const Json& value, std::string_view file) {
  const std::string where = fmt::format("{}: tensor '{}'", file, name.substr(0, 200));
  if (name.empty() || name.size() > kMaxNameBytes || name.find('\0') != std::string::npos)
    return invalid(where, fmt::format("expected a name of 1 to {} bytes without NUL", kMaxNameBytes));
  if (!value.is_object())
    return invalid(where,
                   fmt::format("expected an object with dtype, shape, data_offsets, found {}", json_excerpt(value)));
  const JsonObject object(value, std::string(file), name);
  SafetensorsHeader::Record record;
  record.name = name;

  QD_TRY(const std::string type, object.get_string("dtype"));
  const std::optional<DType> dtype = dtype_from_name(type);
  if (!dtype) return invalid(where, fmt::format("expected a dtype that safetensors knows, found '{}'", type));
  record.dtype = *dtype;

  const Json* shape = object.find("shape");
  if (shape == nullptr || !shape->is_array() || shape->size() > kMaxRank)
    return object.error("shape", fmt::format("a list of at most {} dimensions", kMaxRank));
  for (const Json& extent : *shape) {
    const std::optional<uint64_t> number = bounded_unsigned(extent);
    if (!number) return object.error("shape", "integers from 0 to 2^48");
    record.shape.push_back(static_cast<int64_t>(*number));
  }

  const Json* offsets = object.find("data_offsets");
  if (offsets == nullptr || !offsets->is_array() || offsets->size() != 2)
    return object.error("data_offsets", "two integers [begin, end]");
  const std::optional<uint64_t> begin = bounded_unsigned((*offsets)[0]);
  const std::optional<uint64_t> end = bounded_unsigned((*offsets)[1]);
  if (!begin || !end) return object.error("data_offsets", "two integers from 0 to 2^48");
  record.begin = *begin;
  record.end = *end;
  return record;
}

// The ranges, sorted, must lie end to end from 0: no overlap, no hole.
Status check_ranges(const SafetensorsHeader& header, std::string_view file) {
  uint64_t expected = 0;
  for (const auto& record : header.records) {
    if (record.begin != expected || record.end < record.begin)
      return invalid(file, fmt::format("tensor '{}': expected data_offsets that begin at {} and do not decrease, found "
                                       "[{}, {}] (overlap, hole or decreasing range)",
                                       record.name, expected, record.begin, record.end));
    expected = record.end;
  }
  return {};
}

Status check_size_of(const SafetensorsHeader::Record& record, std::string_view file) {
  const std::string where = fmt::format("{}: tensor '{}'", file, record.name);
  uint64_t bits = static_cast<uint64_t>(dtype_bits(record.dtype));
  for (const int64_t extent : record.shape)
    if (__builtin_mul_overflow(bits, static_cast<uint64_t>(extent), &bits))
      return invalid(where, fmt::format("the size of shape {} overflows", shape_text(record.shape)));
  if (bits % 8 != 0)
    return invalid(where, fmt::format("expected whole bytes, found {} bits ({} {})", bits, dtype_name(record.dtype),
                                      shape_text(record.shape)));
  if (record.end - record.begin != bits / 8)
    return invalid(where, fmt::format("expected {} bytes for {} {}, found data_offsets [{}, {}] = {} bytes", bits / 8,
                                      dtype_name(record.dtype), shape_text(record.shape), record.begin, record.end,
                                      record.end - record.begin));
  return {};
}

}  // namespace

Result<SafetensorsHeader> parse_safetensors_header(std::span<const std::byte> head, uint64_t file_size,
                                                   std::string_view where) {
  QD_TRY(const uint64_t length, header_length(head, file_size, where));
  if (head.size() < 8 + length)
    return invalid(where, fmt::format("expected {} bytes of header, found {}", 8 + length, head.size()));
  const std::string_view text(reinterpret_cast<const char*>(head.data()) + 8, length);
  const JsonLimits limits{.max_bytes = kMaxHeaderBytes, .max_depth = 8};
  QD_TRY(const Json json, parse_json(text, fmt::format("{}: header", where), limits));
  if (!json.is_object())
    return invalid(where, fmt::format("expected a JSON object as header, found {}", json_excerpt(json)));
  SafetensorsHeader header;
  header.data_offset = 8 + length;
  header.records.reserve(json.size());
  for (const auto& [name, value] : json.items()) {
    if (name == kMetadataKey) {
      QD_TRY(header.metadata, read_metadata(value, where));
      continue;
    }
    QD_TRY(SafetensorsHeader::Record record, read_record(name, value, where));
    header.records.push_back(std::move(record));
  }
  std::sort(header.records.begin(), header.records.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  QD_TRY_STATUS(check_ranges(header, where));
  for (const auto& record : header.records) QD_TRY_STATUS(check_size_of(record, where));
  const uint64_t data_bytes = header.records.empty() ? 0 : header.records.back().end;
  if (header.data_offset + data_bytes != file_size)
    return invalid(where, fmt::format("expected {} bytes (8 + header {} + data {}), found {}; {}",
                                      header.data_offset + data_bytes, length, data_bytes, file_size, kCopyAgain));
  return header;
}

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  SafetensorsFile result;
  QD_TRY(result.file_, MappedFile::open(path));
  const MappedFile& file = *result.file_;
  // The head is read through the descriptor: a file that shrinks meanwhile gives an error.
  std::vector<std::byte> head(std::min<uint64_t>(8, file.size()));
  QD_TRY_STATUS(file.copy_out(0, head));
  QD_TRY(const uint64_t length, header_length(head, file.size(), path));
  head.resize(8 + length);
  QD_TRY_STATUS(file.copy_out(0, head));
  QD_TRY(SafetensorsHeader header, parse_safetensors_header(head, file.size(), path));
  for (auto& record : header.records) {
    TensorView view;
    view.name = record.name;
    view.dtype = record.dtype;
    view.shape = std::move(record.shape);
    view.file = result.file_;
    view.file_offset = header.data_offset + record.begin;
    view.bytes = file.bytes().subspan(view.file_offset, record.end - record.begin);
    result.tensors_.emplace(record.name, std::move(view));
  }
  result.metadata_ = std::move(header.metadata);
  return result;
}

const TensorView* SafetensorsFile::find(const std::string& name) const {
  const auto place = tensors_.find(name);
  return place == tensors_.end() ? nullptr : &place->second;
}

}  // namespace quadrille::formats

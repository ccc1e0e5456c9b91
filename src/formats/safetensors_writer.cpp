// SPDX-License-Identifier: Apache-2.0
#include "formats/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <utility>

#include "formats/json.h"
#include "formats/tensor_view.h"

namespace quadrille::formats {
namespace {

// The order in which the field's own writer knows the types; it lays them out from the last to the first.
constexpr DType kWriteOrder[] = {DType::kBool,       DType::kF4,     DType::kF6E2M3, DType::kF6E3M2, DType::kU8,
                                 DType::kI8,         DType::kF8E5M2, DType::kF8E4M3, DType::kF8E8M0, DType::kF8E4M3FNUZ,
                                 DType::kF8E5M2FNUZ, DType::kI16,    DType::kU16,    DType::kF16,    DType::kBF16,
                                 DType::kI32,        DType::kU32,    DType::kF32,    DType::kC64,    DType::kF64,
                                 DType::kI64,        DType::kU64};
static_assert(std::size(kWriteOrder) == kNumDTypes);

int write_rank(DType dtype) {
  return static_cast<int>(std::find(std::begin(kWriteOrder), std::end(kWriteOrder), dtype) - std::begin(kWriteOrder));
}

Result<uint64_t> byte_size(const TensorDeclaration& tensor) {
  auto bits = static_cast<uint64_t>(dtype_bits(tensor.dtype));
  for (const int64_t extent : tensor.shape)
    if (extent < 0 || __builtin_mul_overflow(bits, static_cast<uint64_t>(extent), &bits))
      return make_error(ErrorCode::kInvalidArgument, "tensor '{}': shape {} has no size", tensor.name,
                        shape_text(tensor.shape));
  if (bits % 8 != 0)
    return make_error(ErrorCode::kInvalidArgument, "tensor '{}': expected whole bytes, found {} bits", tensor.name,
                      bits);
  return bits / 8;
}

std::string quoted(const std::string& text) {
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string metadata_text(const std::map<std::string, std::string>& metadata) {
  std::string text;
  for (const auto& [key, value] : metadata)
    text += fmt::format("{}{}:{}", text.empty() ? "" : ",", quoted(key), quoted(value));
  return "\"__metadata__\":{" + text + "}";
}

}  // namespace

Result<SafetensorsWriter> SafetensorsWriter::create(const std::string& path, std::vector<TensorDeclaration> tensors,
                                                    const std::map<std::string, std::string>& metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorDeclaration& a, const TensorDeclaration& b) {
    return std::pair(-write_rank(a.dtype), std::string_view(a.name)) <
           std::pair(-write_rank(b.dtype), std::string_view(b.name));
  });
  SafetensorsWriter writer;
  std::string header = "{";
  if (!metadata.empty()) header += metadata_text(metadata);
  uint64_t end = 0;
  for (const TensorDeclaration& tensor : tensors) {
    if (tensor.name.empty() || tensor.name == "__metadata__")
      return make_error(ErrorCode::kInvalidArgument, "{}: a tensor cannot be named '{}'", path, tensor.name);
    QD_TRY(const uint64_t size, byte_size(tensor));
    if (!writer.slots_.emplace(tensor.name, Slot{end, size, 0}).second)
      return make_error(ErrorCode::kInvalidArgument, "{}: tensor '{}' is declared twice", path, tensor.name);
    header +=
        fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", header.size() > 1 ? "," : "",
                    quoted(tensor.name), dtype_name(tensor.dtype), fmt::join(tensor.shape, ","), end, end + size);
    end += size;
  }
  header += "}";
  header.append((8 - header.size() % 8) % 8, ' ');
  for (auto& [name, slot] : writer.slots_) slot.offset += 8 + header.size();

  writer.path_ = path;
  writer.partial_path_ = path + ".partial";
  writer.tensors_ = std::move(tensors);
  writer.file_size_ = 8 + header.size() + end;
  writer.descriptor_ = ::open(writer.partial_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (writer.descriptor_ < 0)
    return make_error(ErrorCode::kIo, "{}: cannot be created: {}", writer.partial_path_, std::strerror(errno));
  std::string head(8, '\0');
  for (int i = 0; i < 8; ++i) head[i] = static_cast<char>((header.size() >> (8 * i)) & 0xFF);
  head += header;
  QD_TRY_STATUS(writer.write_at(0, std::as_bytes(std::span(head))));
  return writer;
}

SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&& other) noexcept
    : path_(std::move(other.path_)),
      partial_path_(std::move(other.partial_path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      file_size_(other.file_size_),
      tensors_(std::move(other.tensors_)),
      slots_(std::move(other.slots_)) {}

SafetensorsWriter::~SafetensorsWriter() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(partial_path_.c_str());
}

Status SafetensorsWriter::write_at(uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t done = ::pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0)
      return make_error(ErrorCode::kIo, "{}: cannot be written: {}", partial_path_,
                        done < 0 ? std::strerror(errno) : "no bytes taken");
    bytes = bytes.subspan(static_cast<size_t>(done));
    offset += static_cast<uint64_t>(done);
  }
  return {};
}

Status SafetensorsWriter::write(const std::string& name, std::span<const std::byte> bytes) {
  const auto place = slots_.find(name);
  if (place != slots_.end() && (place->second.written != 0 || bytes.size() != place->second.size))
    return make_error(ErrorCode::kInvalidArgument, "{}: tensor '{}': expected {} bytes at once, found {} after {}",
                      path_, name, place->second.size, bytes.size(), place->second.written);
  return append(name, bytes);
}

Status SafetensorsWriter::append(const std::string& name, std::span<const std::byte> bytes) {
  const auto place = slots_.find(name);
  if (descriptor_ < 0 || place == slots_.end())
    return make_error(ErrorCode::kInvalidArgument, "{}: tensor '{}' was not declared, or the file is finished", path_,
                      name);
  Slot& slot = place->second;
  if (bytes.size() > slot.size - slot.written)
    return make_error(ErrorCode::kInvalidArgument, "{}: tensor '{}': {} bytes left, found {}", path_, name,
                      slot.size - slot.written, bytes.size());
  QD_TRY_STATUS(write_at(slot.offset + slot.written, bytes));
  slot.written += bytes.size();
  return {};
}

Status SafetensorsWriter::finish(Flush flush) {
  if (descriptor_ < 0) return make_error(ErrorCode::kInvalidArgument, "{}: the file is finished already", path_);
  for (const auto& [name, slot] : slots_)
    if (slot.written != slot.size)
      return make_error(ErrorCode::kInvalidArgument, "{}: tensor '{}' has {} of {} bytes", path_, name, slot.written,
                        slot.size);
  if (flush == Flush::kYes && ::fsync(descriptor_) != 0)
    return make_error(ErrorCode::kIo, "{}: cannot be flushed: {}", partial_path_, std::strerror(errno));
  if (::rename(partial_path_.c_str(), path_.c_str()) != 0)
    return make_error(ErrorCode::kIo, "{}: cannot be renamed to {}: {}", partial_path_, path_, std::strerror(errno));
  ::close(std::exchange(descriptor_, -1));
  return {};
}

}  // namespace quadrille::formats

// SPDX-License-Identifier: Apache-2.0
#include "formats/tensor_view.h"

#include "core/check.h"

namespace quadrille::formats {

int64_t TensorView::num_elements() const {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

Status TensorView::copy_to(std::span<std::byte> destination) const {
  if (destination.size() != bytes.size())
    return make_error(ErrorCode::kInvalidArgument, "{}: {} bytes asked for, the tensor has {}", where(),
                      destination.size(), bytes.size());
  return copy_part(0, destination);
}

Status TensorView::copy_part(uint64_t offset, std::span<std::byte> destination) const {
  if (offset > bytes.size() || destination.size() > bytes.size() - offset)
    return make_error(ErrorCode::kInvalidArgument, "{}: {} bytes at {} asked for, the tensor has {}", where(),
                      destination.size(), offset, bytes.size());
  QD_CHECK(file != nullptr, "a tensor view without a file");
  if (auto status = file->copy_out(file_offset + offset, destination); !status)
    return Error{status.error().code, fmt::format("tensor '{}': {}", name, status.error().message)};
  return {};
}

std::string TensorView::where() const {
  return fmt::format("{}: tensor '{}'", file != nullptr ? file->path() : std::string("(no file)"), name);
}

std::string shape_text(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace quadrille::formats

// SPDX-License-Identifier: Apache-2.0
#include "core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace quadrille {

Result<std::shared_ptr<const MappedFile>> MappedFile::open(const std::string& path) {
  std::shared_ptr<MappedFile> file(new MappedFile);
  file->path_ = path;
  file->descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file->descriptor_ < 0) {
    const ErrorCode code = errno == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo;
    return make_error(code, "{}: cannot be opened: {}", path, std::strerror(errno));
  }
  struct stat info {};
  if (::fstat(file->descriptor_, &info) != 0)
    return make_error(ErrorCode::kIo, "{}: cannot be examined: {}", path, std::strerror(errno));
  if (!S_ISREG(info.st_mode)) return make_error(ErrorCode::kIo, "{}: expected a regular file", path);
  file->size_ = static_cast<uint64_t>(info.st_size);
  if (file->size_ > 0) {
    void* address = ::mmap(nullptr, file->size_, PROT_READ, MAP_PRIVATE, file->descriptor_, 0);
    if (address == MAP_FAILED)
      return make_error(ErrorCode::kIo, "{}: cannot be mapped ({} bytes): {}", path, file->size_, std::strerror(errno));
    file->data_ = static_cast<const std::byte*>(address);
  }
  return std::shared_ptr<const MappedFile>(std::move(file));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  if (descriptor_ >= 0) ::close(descriptor_);
}

Status MappedFile::check_size() const {
  struct stat info {};
  if (::fstat(descriptor_, &info) != 0)
    return make_error(ErrorCode::kIo, "{}: cannot be examined: {}", path_, std::strerror(errno));
  if (static_cast<uint64_t>(info.st_size) < size_)
    return make_error(ErrorCode::kInvalidData,
                      "{}: the file shrank while it was mapped: expected {} bytes, found {}; copy it again and retry",
                      path_, size_, info.st_size);
  return {};
}

Status MappedFile::copy_out(uint64_t offset, std::span<std::byte> destination) const {
  size_t done = 0;
  while (done < destination.size()) {
    const ssize_t got =
        ::pread(descriptor_, destination.data() + done, destination.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return make_error(ErrorCode::kIo, "{}: cannot be read: {}", path_, std::strerror(errno));
    if (got == 0)
      return make_error(ErrorCode::kInvalidData, "{}: expected {} bytes at offset {}, the file ends after {}", path_,
                        destination.size(), offset, done);
    done += static_cast<size_t>(got);
  }
  return {};
}

}  // namespace quadrille

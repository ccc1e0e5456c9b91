// SPDX-License-Identifier: Apache-2.0
#include "quantize/partial_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

namespace quadrille::quantize {
namespace {

namespace fs = std::filesystem;
// Marks the folder as ours and, by its lock, as in use.
constexpr const char* kMarker = ".quadrille-partial";

bool exists(const std::string& path) {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0;
}

void sync_folder(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

// Removes what a killed run left. An empty folder is one that was killed before it wrote its marker.
Status remove_leftover(const std::string& partial) {
  std::error_code error;
  const std::string marker = partial + "/" + kMarker;
  const int descriptor = ::open(marker.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC);
  if (descriptor < 0 && !fs::is_empty(partial, error))
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: exists and is no leftover of an earlier run; remove it or choose another name", partial);
  if (descriptor >= 0 && ::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    ::close(descriptor);
    return make_error(ErrorCode::kInvalidArgument, "{}: another process is writing it", partial);
  }
  fs::remove_all(partial, error);
  if (descriptor >= 0) ::close(descriptor);
  if (error) return make_error(ErrorCode::kIo, "{}: cannot be removed: {}", partial, error.message());
  return {};
}

std::string without_trailing_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

}  // namespace

Result<PartialFolder> PartialFolder::create(const std::string& final_path) {
  PartialFolder folder;
  folder.final_path_ = without_trailing_slash(final_path);
  const std::string partial = folder.final_path_ + ".partial";
  if (folder.final_path_.empty() || exists(folder.final_path_))
    return make_error(ErrorCode::kInvalidArgument, "{}: exists already; choose another name or remove it", final_path);
  if (exists(partial)) QD_TRY_STATUS(remove_leftover(partial));
  if (::mkdir(partial.c_str(), 0777) != 0)
    return make_error(ErrorCode::kInvalidArgument, "{}: cannot be created: {}", partial, std::strerror(errno));
  // From here on the destructor cleans up.
  folder.partial_path_ = partial;
  const std::string marker = partial + "/" + kMarker;
  folder.lock_ = ::open(marker.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (folder.lock_ < 0 || ::flock(folder.lock_, LOCK_EX | LOCK_NB) != 0)
    return make_error(ErrorCode::kIo, "{}: cannot be created: {}", marker, std::strerror(errno));
  return folder;
}

PartialFolder::PartialFolder(PartialFolder&& other) noexcept
    : final_path_(std::move(other.final_path_)),
      partial_path_(std::exchange(other.partial_path_, "")),
      lock_(std::exchange(other.lock_, -1)) {}

PartialFolder::~PartialFolder() {
  if (!partial_path_.empty()) {
    std::error_code ignored;
    fs::remove_all(partial_path_, ignored);
  }
  if (lock_ >= 0) ::close(lock_);
}

Status PartialFolder::commit() {
  sync_folder(partial_path_);
  int code = ::renameat2(AT_FDCWD, partial_path_.c_str(), AT_FDCWD, final_path_.c_str(), RENAME_NOREPLACE);
  // Some file systems do not know the flag.
  if (code != 0 && errno == EINVAL && !exists(final_path_)) code = ::rename(partial_path_.c_str(), final_path_.c_str());
  if (code != 0)
    return make_error(errno == EEXIST ? ErrorCode::kInvalidArgument : ErrorCode::kIo, "{}: cannot be renamed to {}: {}",
                      partial_path_, final_path_, std::strerror(errno));
  partial_path_.clear();
  // After the rename: a run killed in between leaves a whole folder with an empty file too many.
  ::unlink((final_path_ + "/" + kMarker).c_str());
  sync_folder(final_path_);
  const fs::path parent = fs::path(final_path_).parent_path();
  sync_folder(parent.empty() ? "." : parent.string());
  return {};
}

Status write_new_file(const std::string& path, const std::string& text) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor < 0) return make_error(ErrorCode::kIo, "{}: cannot be created: {}", path, std::strerror(errno));
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = ::write(descriptor, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    done += static_cast<size_t>(count);
  }
  const bool is_whole = done == text.size() && ::fsync(descriptor) == 0;
  const int error = errno;
  ::close(descriptor);
  if (!is_whole) return make_error(ErrorCode::kIo, "{}: cannot be written: {}", path, std::strerror(error));
  return {};
}

}  // namespace quadrille::quantize

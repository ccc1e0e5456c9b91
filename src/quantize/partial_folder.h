// SPDX-License-Identifier: Apache-2.0
// A folder that appears under its name only when it is whole: work goes into NAME.partial, commit() renames.
// A killed run leaves NAME.partial alone, and the next run to NAME removes it. Used by folder.cpp and
// model/prepare_folder.cpp.
#pragma once

#include <string>

#include "core/result.h"

namespace quadrille::quantize {

class PartialFolder {
 public:
  // Errors: kInvalidArgument when `final_path` exists, when its parent does not, when NAME.partial is not a leftover of
  // ours, or when another process works in it; kIo.
  static Result<PartialFolder> create(const std::string& final_path);
  PartialFolder(PartialFolder&& other) noexcept;
  PartialFolder& operator=(PartialFolder&&) = delete;
  // Removes the partial folder unless commit() succeeded.
  ~PartialFolder();

  const std::string& path() const { return partial_path_; }
  // Renames to the final name, which must still be free. Errors: kInvalidArgument, kIo.
  Status commit();

 private:
  PartialFolder() = default;
  std::string final_path_;
  std::string partial_path_;
  int lock_ = -1;  // descriptor of the marker file, locked while this process works
};

// A file that does not exist yet, flushed to the disk. kIo.
Status write_new_file(const std::string& path, const std::string& text);

}  // namespace quadrille::quantize

// SPDX-License-Identifier: Apache-2.0
#include "parallel/agree.h"

namespace quadrille::parallel {

Status agree(Communicator& host, const Status& own, const char* what) {
  std::vector<int> failed(static_cast<size_t>(host.size()));
  const int mine = own ? 0 : 1;
  QD_TRY_STATUS(host.all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(failed))));
  if (!own) return own.error().in(fmt::format("rank {}", host.rank()));
  std::string ranks;
  for (size_t r = 0; r < failed.size(); ++r) {
    if (failed[r] != 0) ranks += fmt::format("{}{}", ranks.empty() ? "" : ", ", r);
  }
  if (ranks.empty()) return {};
  return make_error(ErrorCode::kUnsupported, "rank {} is ready, but {} failed on rank {}: see its message", host.rank(),
                    what, ranks);
}

}  // namespace quadrille::parallel

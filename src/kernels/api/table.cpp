// SPDX-License-Identifier: Apache-2.0
// The shape rules of a W4A8 product, in one place: prepare and model ask before they touch a weight.
#include "kernels/api/table.h"

namespace quadrille::kernels {

Status check_w4a8_shape(int64_t n, int64_t k, int64_t group_size) {
  if (group_size != 0 && group_size != 32 && group_size != 64 && group_size != 128) {
    return make_error(ErrorCode::kUnsupported,
                      "W4A8 group size {} is not supported: legal are 32, 64, 128 and one scale a channel", group_size);
  }
  if (n <= 0 || n % 8 != 0) {
    return make_error(ErrorCode::kUnsupported, "W4A8 needs out features in multiples of 8, found n = {}{}", n,
                      n > 0 ? fmt::format(" (next legal: {} and {})", n / 8 * 8, n / 8 * 8 + 8) : "");
  }
  const int64_t unit = group_size == 0 ? 8 : group_size;
  if (k <= 0 || k % unit != 0) {
    return make_error(ErrorCode::kUnsupported,
                      "W4A8 needs in features in multiples of {} ({}), found k = {}: use a smaller group size or one "
                      "scale a channel",
                      unit, group_size == 0 ? "one scale a channel" : "the group size", k);
  }
  return {};
}

}  // namespace quadrille::kernels

// SPDX-License-Identifier: Apache-2.0
// The device table of a build without CUDA.
#include "kernels/api/device_table.h"

namespace quadrille::kernels {

Result<const DeviceTable*> device_table() {
  return make_error(ErrorCode::kUnsupported,
                    "this build has no CUDA backend: configure with -DQD_CUDA=ON where nvcc is installed");
}

}  // namespace quadrille::kernels

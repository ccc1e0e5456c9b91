// SPDX-License-Identifier: Apache-2.0
// The device tables of a build without CUDA.
#include "kernels/api/device_table.h"
#include "kernels/api/peer_table.h"

namespace quadrille::kernels {
namespace {

Error no_cuda() {
  return make_error(ErrorCode::kUnsupported,
                    "this build has no CUDA backend: configure with -DQD_CUDA=ON where nvcc is installed");
}

}  // namespace

Result<const DeviceTable*> device_table() {
  return no_cuda();
}
Result<const PeerTable*> peer_table() {
  return no_cuda();
}

}  // namespace quadrille::kernels

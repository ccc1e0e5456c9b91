// SPDX-License-Identifier: Apache-2.0
// The table of kernels between GPUs, and how their code is loaded before anybody waits.
#include "kernels/api/peer_table.h"

#include <cuda_runtime_api.h>

#include "kernels/cuda/ranks/peer_kernels.h"

namespace quadrille::kernels {
namespace {

// Asking for a kernel's attributes loads its code on the thread's GPU.
Status load_all() {
  for (const void* kernel : cuda::one_shot_kernels()) {
    cudaFuncAttributes attributes{};
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error == cudaSuccess) continue;
    (void)cudaGetLastError();
    return make_error(ErrorCode::kIo, "loading a kernel between GPUs: {}", cudaGetErrorString(error));
  }
  return {};
}

const PeerTable kPeerTable = {
    .one_shot_reduce = cuda::one_shot_reduce,
    .barrier = cuda::peer_barrier,
    .load = load_all,
};

}  // namespace

Result<const PeerTable*> peer_table() {
  return &kPeerTable;
}

}  // namespace quadrille::kernels

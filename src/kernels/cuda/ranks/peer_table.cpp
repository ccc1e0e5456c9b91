// SPDX-License-Identifier: Apache-2.0
// The table of kernels between GPUs, and how their code is loaded before anybody waits.
#include "kernels/api/peer_table.h"

#include <cuda_runtime_api.h>

#include "kernels/cuda/ranks/peer_kernels.h"

namespace quadrille::kernels {
namespace {

// Asking for a kernel's attributes loads its code on the thread's GPU.
Status load_all() {
  std::vector<const void*> kernels = cuda::one_shot_kernels();
  for (const auto& more : {cuda::expert_rows_kernels(), cuda::combine_ranks_kernels()}) {
    kernels.insert(kernels.end(), more.begin(), more.end());
  }
  for (const void* kernel : kernels) {
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
    .pack_tokens = cuda::pack_tokens,
    .local_routes = cuda::local_routes,
    .place_tokens = cuda::place_tokens,
    .return_rows = cuda::return_rows,
    .combine_ranks = cuda::combine_ranks,
    .load = load_all,
};

}  // namespace

Result<const PeerTable*> peer_table() {
  return &kPeerTable;
}

}  // namespace quadrille::kernels

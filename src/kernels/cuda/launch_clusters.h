// SPDX-License-Identifier: Apache-2.0
// launch_chained() for kernels whose CTAs may stand in clusters.
#pragma once

#include "kernels/cuda/launch.h"

namespace quadrille::kernels::cuda {

// Clusters of `cluster` CTAs along x, of which the grid has a whole number; 1: none.
template <typename... Parameters, typename... Arguments>
void launch_chained_clusters(void (*kernel)(Parameters...), dim3 grid, dim3 block, unsigned cluster, size_t shared,
                             cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchAttribute attributes[3]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1] = all_shared_memory();
  attributes[2].id = cudaLaunchAttributeClusterDimension;
  attributes[2].val.clusterDim.x = cluster;
  attributes[2].val.clusterDim.y = attributes[2].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 3 : 2;
  if (cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...) != cudaSuccess) {
    check_launch("a chained launch of clusters");
  }
}

}  // namespace quadrille::kernels::cuda

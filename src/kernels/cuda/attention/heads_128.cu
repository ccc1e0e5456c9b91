// SPDX-License-Identifier: Apache-2.0
// Attention with heads of up to 128 dimensions.
#include "kernels/cuda/attention/cluster_singles.cuh"
#include "kernels/cuda/attention/singles.cuh"
#include "kernels/cuda/attention/tiles.cuh"

namespace quadrille::kernels::cuda {

template void launch_cluster_singles<128>(const AttentionArguments&, device::Stream);
template void launch_singles<128>(const AttentionArguments&, int64_t, device::Stream);
template void launch_tiles<128>(const AttentionArguments&, device::Stream);

}  // namespace quadrille::kernels::cuda

// SPDX-License-Identifier: Apache-2.0
// The launch behind singles whose blocks were spread (gather.cu).
#pragma once

#include "kernels/cuda/attention/arguments.h"

namespace quadrille::kernels::cuda {

void launch_gather(const AttentionArguments& args, device::Stream stream);

}  // namespace quadrille::kernels::cuda

// SPDX-License-Identifier: Apache-2.0
// What the GPU can do at most, probed where and when the bench runs. Called by bench_gpu.cpp.
#pragma once

#include "core/result.h"

namespace quadrille::cli {

struct GpuCeilings {
  double read = 0;  // bytes/s: the best of the probed reads of 2 GiB
  double copy = 0;  // bytes/s, read and written: the best of the probed copies
  double fp8 = 0;   // operations/s of resident e4m3 products: the mean of a run of about 0.3 s, power limited
};

// Of GPU `ordinal`, on a stream of its own; takes about half a second and 2 GiB, given back. Errors: no room, no table.
Result<GpuCeilings> probe_gpu(int ordinal);

}  // namespace quadrille::cli

// SPDX-License-Identifier: Apache-2.0
// QD_HD marks a function that host and device share; the only place that sees __CUDACC__.
// always_inline on the host: no weak symbol leaves a unit that was built for a wider instruction set.
#pragma once

#if defined(__CUDACC__)
#define QD_HD __host__ __device__ __forceinline__
#else
#define QD_HD inline __attribute__((always_inline))
#endif

// SPDX-License-Identifier: Apache-2.0
// How many cores this process may use: the pool, the ranks and the command line split their work by it.
#pragma once

#include <sched.h>

#include <algorithm>
#include <thread>

namespace quadrille {

// At least one. The affinity mask counts, not the cores of the machine; without one, what the system says.
inline int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

}  // namespace quadrille

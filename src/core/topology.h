// SPDX-License-Identifier: Apache-2.0
// How many cores this process may use: the pool, the ranks and the command line split their work by it.
#pragma once

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

namespace quadrille {

// At least one. The affinity mask counts, not the cores of the machine; without one, what the system says.
// `process` 0 is this one.
inline int usable_cores(pid_t process = 0) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(process, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

// Of the process that started this one, as a launcher does with its ranks.
inline int cores_of_parent() {
  return usable_cores(::getppid());
}

}  // namespace quadrille

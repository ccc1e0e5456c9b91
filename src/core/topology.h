// SPDX-License-Identifier: Apache-2.0
// How many cores this process may use: the pool, the ranks and the command line split their work by it.
#pragma once

#include <sched.h>
#include <unistd.h>

#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace quadrille {

// "0-3,8" -> 0, 1, 2, 3, 8, ascending: what the kernel writes for cores and memory nodes. "" and blanks hold none.
// kInvalidData for anything else, and for numbers above 65535.
Result<std::vector<int>> parse_cpu_list(std::string_view text);
// 0, 1, 2, 3, 8 -> "0-3,8"; the numbers ascend.
std::string cpu_list_text(const std::vector<int>& cpus);

// The affinity mask, ascending; empty where the system does not tell. `process` 0 is this one.
std::vector<int> allowed_cpus(pid_t process = 0);

// Where the system says what cgroups allow; tests point them at files of their own.
struct CgroupFiles {
  std::string membership = "/proc/self/cgroup";
  std::string mounts = "/proc/self/mountinfo";
};

// Cores that the CPU quota of the cgroup and of all above it is worth (cgroup v2: cpu.max, v1: cpu.cfs_quota_us),
// rounded up; 0: no quota, or no cgroup that can be read. A container has one where it is given "--cpus 2" or a limit.
int cgroup_cores(const CgroupFiles& files = {});

// At least one. The affinity mask and the quota count, not the cores of the machine; without a mask, what the system
// says. `process` 0 is this one.
int usable_cores(pid_t process = 0);

// Of the process that started this one, as a launcher does with its ranks.
int cores_of_parent();

}  // namespace quadrille

// SPDX-License-Identifier: Apache-2.0
#include "core/topology.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>

namespace quadrille {
namespace {

constexpr int kMostCpus = 65536;

std::optional<int64_t> number_of(std::string_view text) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

// Splits at every `mark`; "" gives one empty piece.
std::vector<std::string> pieces(const std::string& text, char mark) {
  std::vector<std::string> out;
  std::istringstream in(text + mark);
  for (std::string piece; std::getline(in, piece, mark);) out.push_back(piece);
  return out;
}

bool names_cpu(const std::string& controllers) {
  const auto all = pieces(controllers, ',');
  return std::find(all.begin(), all.end(), "cpu") != all.end();
}

// A hierarchy that can hold a quota: where it is mounted, and which of its folders the process is in.
struct Hierarchy {
  bool is_v2 = false;
  std::string mount, folder;
};

// `path` of the membership inside a mount that shows `root`. In a container the two may not fit: then the mount itself
// is the nearest folder that can be seen.
std::string folder_in_mount(const std::string& path, const std::string& root) {
  if (root == "/") return path == "/" ? "" : path;
  if (path.starts_with(root) && (path.size() == root.size() || path[root.size()] == '/'))
    return path.substr(root.size());
  return "";
}

// Lines of mountinfo: id parent device root mount options... - type source superoptions.
void find_mount(const CgroupFiles& files, bool is_v2, const std::string& path, std::vector<Hierarchy>* found) {
  std::ifstream in(files.mounts);
  for (std::string line; std::getline(in, line);) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    const auto left = pieces(line.substr(0, dash), ' ');
    const auto right = pieces(line.substr(dash + 3), ' ');
    if (left.size() < 5 || right.size() < 3) continue;
    if (right[0] != (is_v2 ? "cgroup2" : "cgroup") || (!is_v2 && !names_cpu(right[2]))) continue;
    found->push_back({is_v2, left[4], folder_in_mount(path, left[3])});
  }
}

std::vector<Hierarchy> hierarchies(const CgroupFiles& files) {
  std::vector<Hierarchy> found;
  std::ifstream in(files.membership);
  for (std::string line; std::getline(in, line);) {
    // "0::/path" for v2, "4:cpu,cpuacct:/path" for v1.
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && !names_cpu(controllers)) continue;
    find_mount(files, controllers.empty(), line.substr(second + 1), &found);
  }
  return found;
}

std::vector<std::string> words_of(const std::string& path) {
  std::ifstream in(path);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

// Quota and period in microseconds, rounded up to cores; 0: none.
int quota_of(const Hierarchy& hierarchy, const std::string& folder) {
  const std::string at = hierarchy.mount + folder;
  std::vector<std::string> words;
  if (hierarchy.is_v2) {
    words = words_of(at + "/cpu.max");
  } else {
    words = words_of(at + "/cpu.cfs_quota_us");
    for (const std::string& word : words_of(at + "/cpu.cfs_period_us")) words.push_back(word);
  }
  if (words.size() != 2) return 0;
  const auto quota = number_of(words[0]);  // "max" and -1: none
  const auto period = number_of(words[1]);
  if (!quota || !period || *quota <= 0 || *period <= 0) return 0;
  return static_cast<int>(std::min<int64_t>((*quota - 1) / *period + 1, kMostCpus));
}

}  // namespace

Result<std::vector<int>> parse_cpu_list(std::string_view text) {
  std::vector<int> cpus;
  std::string list(text);
  std::erase_if(list, [](char c) { return c == ' ' || c == '\n' || c == '\t'; });
  if (list.empty()) return cpus;
  for (const std::string& piece : pieces(list, ',')) {
    const size_t dash = piece.find('-', 1);
    const auto first = number_of(std::string_view(piece).substr(0, dash));
    const auto last = dash == std::string::npos ? first : number_of(std::string_view(piece).substr(dash + 1));
    if (!first || !last || *first < 0 || *last < *first || *last >= kMostCpus) {
      return make_error(ErrorCode::kInvalidData, "'{}' is no list of numbers like 0-3,8: found '{}'", list, piece);
    }
    for (int64_t cpu = *first; cpu <= *last; ++cpu) cpus.push_back(static_cast<int>(cpu));
  }
  std::sort(cpus.begin(), cpus.end());
  cpus.erase(std::unique(cpus.begin(), cpus.end()), cpus.end());
  return cpus;
}

std::string cpu_list_text(const std::vector<int>& cpus) {
  std::string text;
  for (size_t i = 0; i < cpus.size();) {
    size_t last = i;
    while (last + 1 < cpus.size() && cpus[last + 1] == cpus[last] + 1) ++last;
    if (!text.empty()) text += ',';
    text += last == i ? fmt::format("{}", cpus[i]) : fmt::format("{}-{}", cpus[i], cpus[last]);
    i = last + 1;
  }
  return text;
}

std::vector<int> allowed_cpus(pid_t process) {
  std::vector<int> cpus;
  // The kernel refuses a mask that is smaller than its own: 1,024 cores is what cpu_set_t holds.
  for (int size = 1024; size <= kMostCpus; size *= 4) {
    std::vector<unsigned long> mask(static_cast<size_t>(size) / (8 * sizeof(unsigned long)));
    const size_t bytes = mask.size() * sizeof(unsigned long);
    auto* set = reinterpret_cast<cpu_set_t*>(mask.data());
    if (::sched_getaffinity(process, bytes, set) != 0) continue;
    for (int cpu = 0; cpu < size; ++cpu) {
      if (CPU_ISSET_S(static_cast<size_t>(cpu), bytes, set)) cpus.push_back(cpu);
    }
    return cpus;
  }
  return cpus;
}

int cgroup_cores(const CgroupFiles& files) {
  int least = 0;
  for (const Hierarchy& hierarchy : hierarchies(files)) {
    std::string folder = hierarchy.folder;
    for (;;) {
      const int cores = quota_of(hierarchy, folder);
      if (cores > 0 && (least == 0 || cores < least)) least = cores;
      if (folder.empty()) break;
      folder.resize(folder.rfind('/') == std::string::npos ? 0 : folder.rfind('/'));
    }
  }
  return least;
}

int usable_cores(pid_t process) {
  const auto allowed = static_cast<int>(allowed_cpus(process).size());
  const int cores = allowed > 0 ? allowed : static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  CgroupFiles files;
  if (process != 0) files.membership = fmt::format("/proc/{}/cgroup", process);
  const int quota = cgroup_cores(files);
  return quota > 0 ? std::min(cores, quota) : cores;
}

int cores_of_parent() {
  return usable_cores(::getppid());
}

}  // namespace quadrille

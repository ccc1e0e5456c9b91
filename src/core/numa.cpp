// SPDX-License-Identifier: Apache-2.0
#include "core/numa.h"

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/topology.h"

namespace quadrille {
namespace {

// Of linux/mempolicy.h.
constexpr int kPolicyPreferred = 1;
constexpr int kPolicyInterleave = 3;

constexpr size_t kBitsAWord = 8 * sizeof(unsigned long);

std::vector<unsigned long> mask_of(const std::vector<int>& numbers) {
  const size_t most = numbers.empty() ? 0 : static_cast<size_t>(numbers.back());
  std::vector<unsigned long> mask(most / kBitsAWord + 1, 0);
  for (const int number : numbers) {
    mask[static_cast<size_t>(number) / kBitsAWord] |= 1UL << static_cast<size_t>(number) % kBitsAWord;
  }
  return mask;
}

int set_memory_policy(int mode, const std::vector<int>& nodes) {
  const auto mask = mask_of(nodes);
  // The kernel takes one bit fewer than it is told of.
  const long done = ::syscall(SYS_set_mempolicy, mode, mask.data(), mask.size() * kBitsAWord + 1);
  return done == 0 ? 0 : errno;
}

int bind_thread(pthread_t thread, const std::vector<int>& cpus) {
  const auto mask = mask_of(cpus);
  return ::pthread_setaffinity_np(thread, mask.size() * sizeof(unsigned long),
                                  reinterpret_cast<const cpu_set_t*>(mask.data()));
}

std::string text_of(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

bool holds(const std::vector<int>& sorted, int number) {
  return std::binary_search(sorted.begin(), sorted.end(), number);
}

std::vector<int> both(const std::vector<int>& a, const std::vector<int>& b) {
  std::vector<int> out;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(out));
  return out;
}

Result<std::vector<int>> read_list(const std::string& path) {
  auto list = parse_cpu_list(text_of(path));
  if (!list) return list.error().in(path);
  return list;
}

std::vector<int> numbers_of(const std::vector<NumaNode>& nodes) {
  std::vector<int> numbers;
  for (const NumaNode& node : nodes) numbers.push_back(node.number);
  return numbers;
}

bool may_allocate(const NumaView& view, const NumaNode& node) {
  return node.has_memory && (view.memory.empty() || holds(view.memory, node.number));
}

// Why threads and memory cannot be on `node`; "" where they can.
std::string reason_against(const NumaView& view, const NumaNode& node) {
  if (node.cpus.empty()) return fmt::format("node {} has no cores", node.number);
  if (both(node.cpus, view.cpus).empty()) {
    return fmt::format("its cores {} are not among those that this process may use ({})", cpu_list_text(node.cpus),
                       cpu_list_text(view.cpus));
  }
  if (!node.has_memory) return fmt::format("node {} has no memory", node.number);
  if (may_allocate(view, node)) return "";
  return fmt::format("this process may use memory of {} alone (its cpuset)", cpu_list_text(view.memory));
}

std::vector<int> legal_nodes(const NumaView& view) {
  std::vector<int> legal;
  for (const NumaNode& node : view.nodes) {
    if (reason_against(view, node).empty()) legal.push_back(node.number);
  }
  return legal;
}

std::string name_of(const std::vector<int>& nodes) {
  return fmt::format("node{} {}", nodes.size() == 1 ? "" : "s", cpu_list_text(nodes));
}

Result<NumaPlacement> place_on_node(int number, const NumaView& view) {
  const auto node =
      std::find_if(view.nodes.begin(), view.nodes.end(), [&](const NumaNode& n) { return n.number == number; });
  if (node == view.nodes.end()) {
    return make_error(ErrorCode::kUnsupported, "--numa node={}: this machine has {}", number,
                      name_of(numbers_of(view.nodes)));
  }
  if (const std::string reason = reason_against(view, *node); !reason.empty()) {
    const auto legal = legal_nodes(view);
    return make_error(ErrorCode::kUnsupported, "--numa node={}: {}; {}", number, reason,
                      legal.empty() ? "use --numa off" : fmt::format("legal here: {}", name_of(legal)));
  }
  NumaPlacement placement;
  placement.binds_threads = true;
  placement.cpus = {both(node->cpus, view.cpus)};
  if (view.nodes.size() > 1) {
    placement.memory = NumaPlacement::Memory::kPrefer;
    placement.memory_nodes = {number};
  }
  return placement;
}

Result<NumaPlacement> interleave(const NumaView& view) {
  NumaPlacement placement;
  for (const NumaNode& node : view.nodes) {
    if (auto cpus = both(node.cpus, view.cpus); !cpus.empty()) placement.cpus.push_back(std::move(cpus));
    if (may_allocate(view, node)) placement.memory_nodes.push_back(node.number);
  }
  if (placement.cpus.empty() || placement.memory_nodes.empty()) {
    return make_error(ErrorCode::kUnsupported,
                      "--numa interleave: no {} of {} may be used by this process: use --numa off",
                      placement.cpus.empty() ? "core" : "memory", name_of(numbers_of(view.nodes)));
  }
  placement.binds_threads = true;
  if (placement.memory_nodes.size() > 1) placement.memory = NumaPlacement::Memory::kInterleave;
  return placement;
}

Status place_memory(const NumaPlacement& placement, const NumaCalls& calls, std::vector<std::string>* warnings) {
  using Memory = NumaPlacement::Memory;
  if (placement.memory == Memory::kLocal) return {};
  const bool prefers = placement.memory == Memory::kPrefer;
  const int error = calls.set_memory_policy(prefers ? kPolicyPreferred : kPolicyInterleave, placement.memory_nodes);
  if (error == 0) return {};
  const std::string what =
      fmt::format("the system refused to {} memory on {} ({}; a container needs the capability SYS_NICE for it)",
                  prefers ? "prefer" : "interleave", name_of(placement.memory_nodes), std::strerror(error));
  if (!prefers) {
    return make_error(ErrorCode::kIo,
                      "--numa interleave: {}: start the program under 'numactl --interleave=all', or use "
                      "--numa off",
                      what);
  }
  warnings->push_back(fmt::format("--numa: {}: it lies where the threads, which are bound, touch it first", what));
  return {};
}

}  // namespace

Result<NumaChoice> parse_numa(std::string_view text) {
  NumaChoice choice;
  if (text == "off") return choice;
  if (text == "interleave" || text == "rank") {
    choice.mode = text == "rank" ? NumaMode::kRank : NumaMode::kInterleave;
    return choice;
  }
  const std::string_view number = text.starts_with("node=") ? text.substr(5) : std::string_view();
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), choice.node);
  if (number.empty() || error != std::errc() || end != number.data() + number.size() || choice.node < 0) {
    return make_error(ErrorCode::kInvalidArgument, "'{}': expected off, interleave, rank or node=K", text);
  }
  choice.mode = NumaMode::kNode;
  return choice;
}

Result<NumaView> read_numa(const NumaFiles& files, const std::vector<int>& affinity) {
  NumaView view;
  view.cpus = affinity;
  QD_TRY(const std::vector<int> online, read_list(files.nodes + "/online"));
  if (online.empty()) {
    view.nodes = {{0, affinity, true}};
    return view;
  }
  const std::string memory_file = files.nodes + "/has_memory";
  const bool tells_memory = std::filesystem::exists(memory_file);
  QD_TRY(const std::vector<int> with_memory, read_list(memory_file));
  for (const int number : online) {
    QD_TRY(std::vector<int> cpus, read_list(fmt::format("{}/node{}/cpulist", files.nodes, number)));
    view.nodes.push_back({number, std::move(cpus), !tells_memory || holds(with_memory, number)});
  }
  const std::string status = text_of(files.status);
  constexpr std::string_view kKey = "\nMems_allowed_list:";
  if (const size_t at = status.find(kKey); at != std::string::npos) {
    const size_t begin = at + kKey.size();
    auto allowed = parse_cpu_list(std::string_view(status).substr(begin, status.find('\n', begin) - begin));
    if (!allowed) return allowed.error().in(files.status);
    view.memory = std::move(*allowed);
  }
  return view;
}

int NumaPlacement::num_cpus() const {
  size_t count = 0;
  for (const auto& node : cpus) count += node.size();
  return static_cast<int>(count);
}

std::vector<int> NumaPlacement::all_cpus() const {
  std::vector<int> all;
  for (const auto& node : cpus) all.insert(all.end(), node.begin(), node.end());
  std::sort(all.begin(), all.end());
  return all;
}

const std::vector<int>& NumaPlacement::cpus_of_thread(int thread, int num_threads) const {
  // The core that the thread would have alone, counted through the nodes.
  auto at = static_cast<size_t>(int64_t{thread} * num_cpus() / num_threads);
  size_t node = 0;
  while (node + 1 < cpus.size() && at >= cpus[node].size()) at -= cpus[node++].size();
  return cpus[node];
}

Result<NumaPlacement> plan_numa(const NumaChoice& choice, const NumaView& view) {
  switch (choice.mode) {
    case NumaMode::kOff:
      return NumaPlacement{};
    case NumaMode::kNode:
      return place_on_node(choice.node, view);
    case NumaMode::kInterleave:
      return interleave(view);
    case NumaMode::kRank:
      break;
  }
  const auto legal = legal_nodes(view);
  if (legal.empty()) return place_on_node(view.nodes[0].number, view);
  return place_on_node(legal[static_cast<size_t>(choice.local_rank) % legal.size()], view);
}

NumaCalls system_numa_calls() {
  return {set_memory_policy, bind_thread};
}

Result<PlacedPool> make_placed_pool(int num_threads, const NumaPlacement& placement, const NumaCalls& calls) {
  PlacedPool made;
  const auto bind = [&calls](pthread_t thread, const std::vector<int>& cpus) -> Status {
    const int error = calls.bind_thread(thread, cpus);
    if (error == 0) return {};
    return make_error(ErrorCode::kIo, "--numa: the system refused to bind a thread to cores {} ({}): use --numa off",
                      cpu_list_text(cpus), std::strerror(error));
  };
  // Before the pool: it counts the cores of this thread, and its threads inherit the policy. This thread may move: what
  // it makes next, such as a second pool, is not to be caught on one node.
  if (placement.binds_threads) QD_TRY_STATUS(bind(::pthread_self(), placement.all_cpus()));
  QD_TRY_STATUS(place_memory(placement, calls, &made.warnings));
  made.pool = std::make_unique<ThreadPool>(num_threads);
  if (!placement.binds_threads) return made;
  const int count = made.pool->num_active();
  for (int i = 1; i < count; ++i) {
    QD_TRY_STATUS(bind(made.pool->thread_handle(i), placement.cpus_of_thread(i, count)));
  }
  return made;
}

Result<PlacedPool> make_placed_pool(int num_threads, const NumaChoice& choice) {
  if (choice.mode == NumaMode::kOff) return make_placed_pool(num_threads, NumaPlacement{});
  QD_TRY(const NumaView view, read_numa({}, allowed_cpus()));
  QD_TRY(const NumaPlacement placement, plan_numa(choice, view));
  return make_placed_pool(num_threads, placement);
}

Result<int> cores_of_choice(const NumaChoice& choice) {
  // Ranks with a node each share all nodes.
  if (choice.mode == NumaMode::kOff || choice.mode == NumaMode::kRank) return usable_cores();
  QD_TRY(const NumaView view, read_numa({}, allowed_cpus()));
  QD_TRY(const NumaPlacement placement, plan_numa(choice, view));
  return std::min(placement.num_cpus(), usable_cores());
}

}  // namespace quadrille

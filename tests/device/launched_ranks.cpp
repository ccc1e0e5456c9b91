// SPDX-License-Identifier: Apache-2.0
#include "device/launched_ranks.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <vector>

#include "multi/processes.h"
#include "parallel/launch.h"
#include "parallel/open.h"

namespace quadrille::multi {

using namespace std::chrono_literals;

void run_launched_rank(const std::function<Status(parallel::Communicator& host)>& body) {
  const auto launch = parallel::detect_launch();
  ASSERT_TRUE(launch) << launch.error().message;
  ASSERT_GT(launch->size, 1) << "started by the test that is not disabled";
  auto host = parallel::open_communicator(*launch, {});
  ASSERT_TRUE(host) << host.error().message;
  const Status done = body(**host);
  EXPECT_TRUE(done) << done.error().message;
  if (!done) return (*host)->fail(done.error().message);
  EXPECT_TRUE((*host)->leave());
}

void expect_launched_ranks(int num_ranks, const std::string& name) {
  // The program's own path: /proc/self is another process there.
  char path[4096] = {};
  ASSERT_GT(::readlink("/proc/self/exe", path, sizeof path - 1), 0);
  const std::string port = std::to_string(20'000 + ::getpid() % 20'000);
  std::vector<Command> commands;
  for (int r = 0; r < num_ranks; ++r) {
    commands.push_back({{path, "--gtest_also_run_disabled_tests", "--gtest_filter=" + name},
                        {{"RANK", std::to_string(r)},
                         {"WORLD_SIZE", std::to_string(num_ranks)},
                         {"LOCAL_RANK", std::to_string(r)},
                         {"MASTER_ADDR", "127.0.0.1"},
                         {"MASTER_PORT", port}}});
  }
  const auto outcomes = run_together(commands, 240s);
  for (size_t r = 0; r < outcomes.size(); ++r) {
    EXPECT_EQ(outcomes[r].status, 0) << "rank " << r << (outcomes[r].timed_out ? ", killed at the limit" : "") << ":\n"
                                     << outcomes[r].output;
  }
}

}  // namespace quadrille::multi

// SPDX-License-Identifier: Apache-2.0
// A run that is killed leaves nothing under the output's name, and the next run cleans up after it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "formats/checkpoint.h"
#include "quantize/folder.h"
#include "unit/quantize/small_model.h"

namespace quadrille::quantize {
namespace {

namespace fs = std::filesystem;
using quadrille::testing::ScratchFolder;
using ::testing::HasSubstr;

class KilledRun : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::write_model(folder_, "in", testing::small_shapes());
    options_.group_size = 32;
    options_.threads = 1;
  }
  // A child that works on the same output until `tensors` are done, then tells us so and either dies or waits.
  pid_t start_child(int64_t tensors, bool dies) {
    int ready[2];
    EXPECT_EQ(::pipe(ready), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      (void)quantize_folder(folder_.file("in"), folder_.file("out"), options_, [&](const QuantizeProgress& progress) {
        if (progress.tensors_done < tensors) return;
        if (dies) ::kill(::getpid(), SIGKILL);
        (void)!::write(ready[1], "x", 1);
        for (;;) ::pause();
      });
      ::_exit(1);
    }
    ::close(ready[1]);
    char signal = 0;
    const ssize_t got = ::read(ready[0], &signal, 1);
    EXPECT_EQ(got, dies ? 0 : 1);
    ::close(ready[0]);
    return child;
  }
  ScratchFolder folder_;
  QuantizeOptions options_;
};

TEST_F(KilledRun, LeavesNothingAndTheNextRunCleansUp) {
  for (const int64_t tensors : {0, 1, 5, 11}) {
    int status = 0;
    const pid_t child = start_child(tensors, true);
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    EXPECT_FALSE(fs::exists(folder_.file("out")));
    EXPECT_TRUE(fs::exists(folder_.file("out.partial")));
  }
  const auto report = quantize_folder(folder_.file("in"), folder_.file("out"), options_);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_FALSE(fs::exists(folder_.file("out.partial")));
  EXPECT_TRUE(formats::Checkpoint::open(folder_.file("out")));
}

TEST_F(KilledRun, ARunThatIsAliveIsLeftAlone) {
  const pid_t child = start_child(2, false);
  const auto report = quantize_folder(folder_.file("in"), folder_.file("out"), options_);
  ASSERT_FALSE(report);
  EXPECT_THAT(report.error().message, HasSubstr("another process"));
  EXPECT_TRUE(fs::exists(folder_.file("out.partial")));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_TRUE(quantize_folder(folder_.file("in"), folder_.file("out"), options_));
}

}  // namespace
}  // namespace quadrille::quantize

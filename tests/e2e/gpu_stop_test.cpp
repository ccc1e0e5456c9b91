// SPDX-License-Identifier: Apache-2.0
// Ctrl-C while a model is loaded to a GPU and while it decodes there: a message, code 130 within seconds, no file left.
#include <gmock/gmock.h>
#include <signal.h>

#include <filesystem>
#include <limits>

#include "device/device.h"
#include "e2e/program.h"

namespace quadrille::testing {
namespace {

using ::testing::HasSubstr;

constexpr double kMostSeconds = 30;

class GpuStop : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const Status here = device::available(); !here) GTEST_SKIP() << here.error().message;
  }
  static bool has_two() { return device::available(1).ok(); }
};

TEST_F(GpuStop, CtrlCEndsADecode) {
  const std::string abacus = abacus_path("w4a8");
  if (abacus.empty()) GTEST_SKIP() << kNoAbacus;
  for (const char* tp : {"1", "2"}) {
    if (std::string(tp) == "2" && !has_two()) continue;
    RunOptions options;
    options.send_signal = SIGINT;
    options.signal_after_bytes = 4;
    const Outcome outcome = run_program(
        {"run", abacus, "Hello", "--ignore-eos", "--max-tokens", "1900", "--device", "cuda", "--tp", tp}, options);
    EXPECT_EXIT_CODE(outcome, 130);
    EXPECT_LT(outcome.seconds, kMostSeconds);
    EXPECT_THAT(outcome.err, HasSubstr("stopped on request"));
  }
}

TEST_F(GpuStop, CtrlCEndsALoad) {
  const TemporaryFolder folder;
  ASSERT_EXIT_OK(
      run_program({"make-model", folder / "m", "--shape", "olmoe-1b-7b", "--layers", "8", "--group-size", "64", "-q"}));
  write_text(folder / "ids.json", R"({"sequences": [[1, 2, 3]]})");
  int stopped = 0;
  for (const char* tp : {"1", "2"}) {
    if (std::string(tp) == "2" && !has_two()) continue;
    for (int tenths = 1; tenths < 16; tenths += 2) {
      RunOptions options;
      options.send_signal = SIGINT;
      options.signal_after_bytes = std::numeric_limits<size_t>::max();
      options.signal_after_seconds = 0.1 * tenths;
      const Outcome outcome = run_program({"logits", folder / "m", "--ids", folder / "ids.json", "--out",
                                           folder / "out.safetensors", "--device", "cuda", "--tp", tp, "-q"},
                                          options);
      EXPECT_LT(outcome.seconds, kMostSeconds);
      EXPECT_FALSE(std::filesystem::exists(folder / "out.safetensors.partial"));
      if (outcome.exit_code == 0) {  // it was done before the signal
        std::filesystem::remove(folder / "out.safetensors");
        break;
      }
      EXPECT_EXIT_CODE(outcome, 130);
      EXPECT_THAT(outcome.err, HasSubstr("stopped on request"));
      EXPECT_FALSE(std::filesystem::exists(folder / "out.safetensors"));
      ++stopped;
    }
  }
  EXPECT_GT(stopped, 0);
}

TEST_F(GpuStop, WhatDoesNotFitIsToldAtOnce) {
  const std::string abacus = abacus_path("w4a8");
  if (abacus.empty()) GTEST_SKIP() << kNoAbacus;
  const Outcome outcome = run_program({"run", abacus, "Hello", "--device", "cuda", "--gpu-memory", "100M", "-q"});
  EXPECT_EXIT_CODE(outcome, 1);
  EXPECT_THAT(outcome.err, HasSubstr("--gpu-memory allows less"));
  EXPECT_THAT(outcome.err, HasSubstr("104857600 bytes may be used"));
}

}  // namespace
}  // namespace quadrille::testing

// SPDX-License-Identifier: Apache-2.0
// The program itself on GPUs that are made up (support/host_device.h): a GPU of another architecture, a driver too old
// and memory that is too small, on one rank and on several, which are threads of one program and say it once.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "cli/program.h"
#include "kernels/api/device_table.h"
#include "support/golden.h"
#include "support/host_device.h"

namespace quadrille::testing {
namespace {

using ::testing::HasSubstr;

struct Ended {
  int code = -1;
  std::string err;
};

Ended run(const std::vector<std::string>& more) {
  std::vector<std::string> arguments = {"quadrille", "run", source_path("models/abacus/w4a8"), "Hello", "--device",
                                        "cuda",      "-q"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  ::testing::internal::CaptureStderr();
  Ended ended;
  ended.code = cli::run_program(static_cast<int>(arguments.size()), argv.data());
  ended.err = ::testing::internal::GetCapturedStderr();
  return ended;
}

class GpuFaults : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (const auto table = kernels::device_table(); !table) GTEST_SKIP() << table.error().message;
    if (!std::filesystem::exists(source_path("models/abacus/w4a8/model.safetensors"))) {
      GTEST_SKIP() << "needs models/abacus with its weights";
    }
    device::reset_host_gpu(size_t{8} << 30);
    device::host_gpu().num_gpus = 2;
  }
  void TearDown() override { EXPECT_EQ(device::left_on_host_gpu(), ""); }
  static std::vector<std::string> ranks() { return {"--tp", GetParam()}; }
};

TEST_P(GpuFaults, AnotherArchitecture) {
  device::host_gpu().properties.name = "NVIDIA A100-SXM4-80GB";
  device::host_gpu().properties.major = 8;
  const Ended ended = run(ranks());
  EXPECT_EQ(ended.code, 1);
  EXPECT_EQ(ended.err,
            "quadrille: NVIDIA A100-SXM4-80GB: expected compute capability 9.0 (Hopper: H100, H200, GH200), found 8.0: "
            "use such a GPU, or run on the CPU\n");
}

TEST_P(GpuFaults, ADriverTooOld) {
  device::host_gpu().properties.driver_version = 11080;
  const Ended ended = run(ranks());
  EXPECT_EQ(ended.code, 1);
  EXPECT_THAT(ended.err, HasSubstr("the NVIDIA driver is too old: expected one for CUDA"));
  EXPECT_THAT(ended.err, HasSubstr("found one for CUDA 11.8: update the driver"));
}

TEST_P(GpuFaults, TooLittleMemory) {
  device::reset_host_gpu(size_t{100} << 20);
  device::host_gpu().num_gpus = 2;
  if (std::string(GetParam()) != "1") GTEST_SKIP() << "GPUs of host memory cannot meet";
  const Ended ended = run(ranks());
  EXPECT_EQ(ended.code, 1);
  EXPECT_THAT(ended.err, HasSubstr("104857600 bytes may be used (104857600 of 104857600 are free)"));
}

class OneOfTwo : public GpuFaults {};

// The ranks are threads of one process; the line names the one whose GPU it is.
TEST_P(OneOfTwo, AnotherArchitectureOfOneRank) {
  device::host_gpu().major_of_last = 10;
  const Ended ended = run(ranks());
  EXPECT_EQ(ended.code, 1);
  EXPECT_THAT(ended.err, HasSubstr("rank 1 in phase"));
  EXPECT_THAT(ended.err, HasSubstr("expected compute capability 9.0 (Hopper: H100, H200, GH200), found 10.0"));
}

INSTANTIATE_TEST_SUITE_P(Ranks, OneOfTwo, ::testing::Values("2"));
INSTANTIATE_TEST_SUITE_P(Ranks, GpuFaults, ::testing::Values("1", "2"));

}  // namespace
}  // namespace quadrille::testing

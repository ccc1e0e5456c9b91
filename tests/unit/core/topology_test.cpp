// SPDX-License-Identifier: Apache-2.0
#include "core/topology.h"

#include <gtest/gtest.h>

#include "file_tree.h"

namespace quadrille {
namespace {

TEST(CpuList, ReadsRangesAndSingles) {
  const auto read = [](const char* text) {
    const auto list = parse_cpu_list(text);
    EXPECT_TRUE(list) << text;
    return list ? *list : std::vector<int>{-1};
  };
  EXPECT_EQ(read("0-3,8"), (std::vector<int>{0, 1, 2, 3, 8}));
  EXPECT_EQ(read("0\n"), (std::vector<int>{0}));
  EXPECT_EQ(read("\t4-4, 1-2\n"), (std::vector<int>{1, 2, 4}));
  EXPECT_EQ(read("1-3,2-5"), (std::vector<int>{1, 2, 3, 4, 5}));
  EXPECT_EQ(read(""), std::vector<int>{});
  EXPECT_EQ(read("\n"), std::vector<int>{});
  EXPECT_EQ(read("65535"), std::vector<int>{65535});
}

TEST(CpuList, RefusesWhatIsNone) {
  for (const char* text : {"a", "1-", "-1", "3-1", "1,,2", ",", "1-2-3", "65536", "0-99999999999999999999", "1;2"}) {
    const auto list = parse_cpu_list(text);
    ASSERT_FALSE(list) << text;
    EXPECT_EQ(list.error().code, ErrorCode::kInvalidData);
    EXPECT_NE(list.error().message.find("is no list of numbers like 0-3,8"), std::string::npos);
  }
}

TEST(CpuList, WritesWhatItReads) {
  for (const char* text : {"", "0", "0-3,8", "0-1,3,5-7,100-200"})
    EXPECT_EQ(cpu_list_text(*parse_cpu_list(text)), text);
}

class Quota : public ::testing::Test {
 protected:
  // One line of mountinfo for a hierarchy mounted at `name` of the tree.
  std::string mount(const std::string& root, const std::string& name, const std::string& type) const {
    return "31 23 0:28 " + root + " " + tree.path(name) + " rw,relatime shared:9 - " + type + "\n";
  }
  int cores(const std::string& membership, const std::string& mounts) const {
    tree.write("membership", membership);
    tree.write("mounts", "23 1 8:1 / / rw - ext4 /dev/root rw\n" + mounts);
    return cgroup_cores({tree.path("membership"), tree.path("mounts")});
  }
  FileTree tree;
  static constexpr const char* kV2 = "cgroup2 cgroup2 rw";
  static constexpr const char* kV1 = "cgroup cgroup rw,cpuacct,cpu";
};

TEST_F(Quota, OfVersion2IsTheLeastOnTheWayUpRoundedUp) {
  tree.write("v2/cpu.max", "max 100000\n");
  tree.write("v2/pod/cpu.max", "250000 100000\n");
  tree.write("v2/pod/box/cpu.max", "800000 100000\n");
  EXPECT_EQ(cores("0::/pod/box\n", mount("/", "v2", kV2)), 3);
  EXPECT_EQ(cores("0::/pod\n", mount("/", "v2", kV2)), 3);
  EXPECT_EQ(cores("0::/\n", mount("/", "v2", kV2)), 0);
  EXPECT_EQ(cores("0::/other/deep\n", mount("/", "v2", kV2)), 0);
}

TEST_F(Quota, InAContainerItsFileIsAtTheMount) {
  tree.write("v2/cpu.max", "50000 100000\n");
  EXPECT_EQ(cores("0::/\n", mount("/", "v2", kV2)), 1);
  // Without a namespace of cgroups the path is that of the host, and the mount shows a part of it, or another.
  EXPECT_EQ(cores("0::/docker/abc\n", mount("/docker/abc", "v2", kV2)), 1);
  EXPECT_EQ(cores("0::/docker/abcd\n", mount("/docker/abc", "v2", kV2)), 1);
  tree.write("v2/inner/cpu.max", "20000 100000");
  tree.write("v2/cpu.max", "300000 100000\n");
  EXPECT_EQ(cores("0::/docker/abc/inner\n", mount("/docker/abc", "v2", kV2)), 1);
}

TEST_F(Quota, OfVersion1IsInItsCpuHierarchyAlone) {
  tree.write("cpu/job/cpu.cfs_quota_us", "400000\n");
  tree.write("cpu/job/cpu.cfs_period_us", "100000\n");
  tree.write("cpu/cpu.cfs_quota_us", "-1\n");
  tree.write("cpu/cpu.cfs_period_us", "100000\n");
  const std::string mounts = mount("/", "set", "cgroup cgroup rw,cpuset") + mount("/", "cpu", kV1);
  EXPECT_EQ(cores("3:cpuset:/job\n2:cpu,cpuacct:/job\n", mounts), 4);
  EXPECT_EQ(cores("3:cpuset:/job\n2:cpu,cpuacct:/\n", mounts), 0);
}

TEST_F(Quota, BothVersionsAtOnceGiveTheLess) {
  tree.write("cpu/cpu.cfs_quota_us", "600000\n");
  tree.write("cpu/cpu.cfs_period_us", "100000\n");
  tree.write("v2/cpu.max", "500000 100000\n");
  EXPECT_EQ(cores("1:cpu:/\n0::/\n", mount("/", "cpu", kV1) + mount("/", "v2", kV2)), 5);
}

TEST_F(Quota, NoFileAndNonsenseAreNoQuota) {
  EXPECT_EQ(cgroup_cores({tree.path("none"), tree.path("none")}), 0);
  for (const char* text : {"", "max", "100000", "x 100000", "100000 0", "0 100000", "-5 100000", "1 2 3"}) {
    tree.write("v2/cpu.max", text);
    EXPECT_EQ(cores("0::/\n", mount("/", "v2", kV2)), 0) << text;
  }
  EXPECT_EQ(cores("nonsense\n::\n0::/\n", "short line\n - \n" + mount("/", "v2", kV2)), 0);
}

TEST(UsableCores, AreAtMostThoseOfTheMask) {
  const auto mask = allowed_cpus();
  ASSERT_FALSE(mask.empty());
  EXPECT_GE(usable_cores(), 1);
  EXPECT_LE(usable_cores(), static_cast<int>(mask.size()));
  EXPECT_GE(cores_of_parent(), 1);
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<size_t>(mask.back()), &one);
  ASSERT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(usable_cores(), 1);
  EXPECT_EQ(allowed_cpus(), std::vector<int>{mask.back()});
  cpu_set_t all;
  CPU_ZERO(&all);
  for (const int cpu : mask) CPU_SET(static_cast<size_t>(cpu), &all);
  ASSERT_EQ(::sched_setaffinity(0, sizeof all, &all), 0);
}

}  // namespace
}  // namespace quadrille

// SPDX-License-Identifier: Apache-2.0
// The choice of a table by name, what it says when it cannot, and that the chosen one is the one that runs.
#include "kernels/api/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "w4a8_sample.h"

namespace quadrille {
namespace {

using kernels::KernelTable;
using ::testing::HasSubstr;

TEST(Registry, NamesAreUniqueAndThoseByNameOnlyComeLast) {
  std::set<std::string> names;
  bool by_name_only_seen = false;
  for (const KernelTable* table : kernels::all_tables()) {
    EXPECT_TRUE(names.insert(table->name).second) << table->name;
    EXPECT_FALSE(by_name_only_seen && !table->by_name_only) << table->name << " comes after one by name only";
    by_name_only_seen = by_name_only_seen || table->by_name_only;
    EXPECT_EQ(table->supports_round_f32, std::string(table->name) != "hopper");
  }
  EXPECT_THAT(names, ::testing::IsSupersetOf({"ref", "hopper", "generic", "avx2", "avx512", "amx", "vdpbf16"}));
}

TEST(Registry, EmptyNamePicksTheFirstThatRuns) {
  auto best = kernels::select_table("");
  ASSERT_TRUE(best) << best.error().message;
  EXPECT_FALSE((*best)->by_name_only);
  for (const KernelTable* table : kernels::all_tables()) {
    if (table == *best) break;
    EXPECT_NE(table->unavailable_reason(), "") << table->name << " is better and runs, but was not picked";
  }
}

TEST(Registry, EachByItsName) {
  for (const KernelTable* table : kernels::all_tables()) {
    auto found = kernels::select_table(table->name);
    if (table->unavailable_reason().empty()) {
      ASSERT_TRUE(found) << found.error().message;
      EXPECT_EQ(*found, table);
    } else {
      ASSERT_FALSE(found);
      EXPECT_EQ(found.error().code, ErrorCode::kUnsupported);
      EXPECT_THAT(found.error().message, HasSubstr(table->unavailable_reason()));
    }
  }
}

TEST(Registry, UnknownNameListsTheNames) {
  auto found = kernels::select_table("sse9");
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().code, ErrorCode::kInvalidArgument);
  for (const KernelTable* table : kernels::all_tables()) EXPECT_THAT(found.error().message, HasSubstr(table->name));
}

TEST(Registry, TheChosenTableIsTheOneThatRuns) {
  for (const KernelTable* chosen : testing::runnable_tables()) {
    testing::W4A8Sample sample({16, 64, 32, {2}}, kernels::Numerics::kExact, 1);
    std::vector<uint64_t> before;
    for (const KernelTable* table : kernels::all_tables()) before.push_back(table->num_calls());
    (void)sample.run(*chosen);
    for (size_t i = 0; i < before.size(); ++i) {
      const KernelTable* table = kernels::all_tables()[i];
      EXPECT_EQ(table->num_calls() > before[i], table == chosen) << table->name;
    }
  }
}

TEST(Shapes, LegalAndIllegal) {
  EXPECT_TRUE(kernels::check_w4a8_shape(8, 32, 32));
  EXPECT_TRUE(kernels::check_w4a8_shape(2048, 768, 128));
  EXPECT_TRUE(kernels::check_w4a8_shape(8, 40, 0));
  const auto refused = [](int64_t n, int64_t k, int64_t group, const char* text) {
    const Status status = kernels::check_w4a8_shape(n, k, group);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::kUnsupported);
    EXPECT_THAT(status.error().message, HasSubstr(text));
  };
  refused(16, 64, 16, "group size 16");
  refused(12, 64, 32, "n = 12");
  refused(0, 64, 32, "n = 0");
  refused(16, 192, 128, "k = 192");
  refused(16, 0, 64, "k = 0");
  refused(16, 44, 0, "k = 44");
  refused(16, -32, 32, "k = -32");
}

}  // namespace
}  // namespace quadrille

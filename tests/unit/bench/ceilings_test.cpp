// SPDX-License-Identifier: Apache-2.0
// How rates of probes become a ceiling, and that every probe of this machine runs: speeds themselves are not tested.
#include "bench/ceilings.h"

#include <gtest/gtest.h>

#include "bench/probe_loops.h"

namespace quadrille::bench {
namespace {

TEST(ProbeForms, TheCeilingIsTheBestMedian) {
  ProbeForms forms;
  EXPECT_EQ(forms.best_rate(), 0);
  EXPECT_EQ(forms.best_form(), "none");
  for (const double rate : {1.0, 100.0, 2.0}) forms.add("lucky once", rate);
  for (const double rate : {3.0, 3.0, 3.0}) forms.add("steady", rate);
  EXPECT_EQ(forms.best_rate(), 3);
  EXPECT_EQ(forms.best_form(), "steady");
  EXPECT_EQ(forms.medians().size(), 2u);
}

TEST(Ceilings, AKernelThatIsFasterRaisesThem) {
  ThreadPool pool(1);
  Ceilings ceilings(pool, wall_seconds, int64_t{4} << 20);
  ceilings.saw_read_rate(5);
  ceilings.saw_dot_rate(6);
  ceilings.saw_decode_rate(7);
  EXPECT_EQ(ceilings.read_rate(), 5);
  EXPECT_EQ(ceilings.dot_rate(), 6);
  EXPECT_EQ(ceilings.decode_rate(), 7);
  EXPECT_EQ(ceilings.best_read_form(), "the kernel itself");
  ceilings.probe_read();
  EXPECT_GT(ceilings.read_rate(), 5);
  EXPECT_NE(ceilings.best_read_form(), "the kernel itself");
  EXPECT_GE(ceilings.read_forms().medians().size(), 3u);
  ceilings.clear();
  EXPECT_EQ(ceilings.read_rate(), 0);
}

TEST(Ceilings, EveryUnitThatRunsHasThreeForms) {
  for (const DotUnit unit :
       {DotUnit::kSse2, DotUnit::kAvx2Fma, DotUnit::kAvx512Fma, DotUnit::kVdpbf16, DotUnit::kAmxBf16}) {
    const auto loops = dot_loops(unit);
    EXPECT_EQ(loops.empty(), !dot_unit_runs(unit)) << dot_unit_name(unit);
    for (const DotLoop& loop : loops) EXPECT_GT(loop.run(64), 0) << dot_unit_name(unit) << ", " << loop.form;
    EXPECT_TRUE(loops.empty() || loops.size() >= 3) << dot_unit_name(unit);
  }
  EXPECT_TRUE(dot_unit_runs(DotUnit::kSse2));
  for (const DecodeLoop& loop : decode_loops()) EXPECT_GE(loop.run(64), 64 * 64) << loop.form;
  EXPECT_TRUE(!dot_unit_runs(DotUnit::kAvx2Fma) || decode_loops().size() >= 3);
}

TEST(Ceilings, UnitsByTable) {
  EXPECT_EQ(dot_unit_of("amx"), DotUnit::kAmxBf16);
  EXPECT_EQ(dot_unit_of("vdpbf16"), DotUnit::kVdpbf16);
  EXPECT_EQ(dot_unit_of("avx512"), DotUnit::kAvx512Fma);
  EXPECT_EQ(dot_unit_of("avx2"), DotUnit::kAvx2Fma);
  EXPECT_EQ(dot_unit_of("generic"), DotUnit::kSse2);
}

}  // namespace
}  // namespace quadrille::bench

// SPDX-License-Identifier: Apache-2.0
#include "bench/profiled_table.h"

#include <fmt/format.h>

#include "bench/ceilings.h"

namespace quadrille::bench {
namespace {

using kernels::KernelContext;
using kernels::KernelTable;

struct Entry {
  const char* name;
  int64_t calls = 0;
  double seconds = 0;
};
Entry g_entries[] = {{"quantize_rows"}, {"w4a8_gemm"}, {"bf16_gemm"},     {"gated_activation"}, {"rms_norm"},
                     {"rope"},          {"attention"}, {"router_logits"}, {"combine"},          {"add_residual"}};
const KernelTable* g_table = nullptr;

template <int Index, auto Function>
struct Timed;
template <int Index, typename Problem, void (*KernelTable::*Function)(const Problem&, const KernelContext&)>
struct Timed<Index, Function> {
  static void run(const Problem& problem, const KernelContext& context) {
    const double begin = wall_seconds();
    (g_table->*Function)(problem, context);
    g_entries[Index].seconds += wall_seconds() - begin;
    ++g_entries[Index].calls;
  }
};

}  // namespace

KernelTable start_profile(const KernelTable& table) {
  g_table = &table;
  for (Entry& entry : g_entries) entry.calls = 0, entry.seconds = 0;
  KernelTable timed = table;
  timed.quantize_rows = Timed<0, &KernelTable::quantize_rows>::run;
  timed.w4a8_gemm = Timed<1, &KernelTable::w4a8_gemm>::run;
  timed.bf16_gemm = Timed<2, &KernelTable::bf16_gemm>::run;
  timed.gated_activation = Timed<3, &KernelTable::gated_activation>::run;
  timed.rms_norm = Timed<4, &KernelTable::rms_norm>::run;
  timed.rope = Timed<5, &KernelTable::rope>::run;
  timed.attention = Timed<6, &KernelTable::attention>::run;
  timed.router_logits = Timed<7, &KernelTable::router_logits>::run;
  timed.combine = Timed<8, &KernelTable::combine>::run;
  timed.add_residual = Timed<9, &KernelTable::add_residual>::run;
  return timed;
}

std::string profile_text(double total_seconds) {
  std::string text;
  double rest = total_seconds;
  for (const Entry& entry : g_entries) {
    if (entry.calls == 0) continue;
    rest -= entry.seconds;
    text += fmt::format("    {:<18} {:>6} calls {:>10.1f} us each {:>6.1f} %\n", entry.name, entry.calls,
                        entry.seconds / static_cast<double>(entry.calls) * 1e6, 100 * entry.seconds / total_seconds);
  }
  return text + fmt::format("    {:<18} {:>39.1f} %\n", "outside", 100 * rest / total_seconds);
}

}  // namespace quadrille::bench

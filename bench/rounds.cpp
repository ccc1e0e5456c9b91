// SPDX-License-Identifier: Apache-2.0
#include "bench/rounds.h"

namespace quadrille::bench {

Measured Rounds::measure(DotUnit unit, bool decodes, int64_t calls, const std::vector<Variant>& variants) {
  Measured measured;
  measured.seconds.resize(variants.size());
  ceilings_.clear();
  const kernels::KernelContext context{&pool_, &arena_};
  for (const Variant& variant : variants) {
    variant.run(0, context);
    arena_.reset();
  }
  int64_t number = 0;
  for (int round = 0; round < rounds_; ++round) {
    ceilings_.probe_read();
    ceilings_.probe_dot(unit);
    if (decodes) ceilings_.probe_decode();
    for (size_t v = 0; v < variants.size(); ++v) {
      for (int64_t call = 0; call < calls; ++call) {
        const double begin = clock_();
        variants[v].run(number + 1 + call, context);
        measured.seconds[v].push_back(clock_() - begin);
        arena_.reset();
      }
    }
    number += calls;
  }
  measured.limits = limits(decodes);
  return measured;
}

void Rounds::saw(const Work& work, double seconds) {
  ceilings_.saw_read_rate(work.bytes / seconds);
  ceilings_.saw_dot_rate(work.operations / seconds);
  ceilings_.saw_decode_rate(work.weights / seconds);
}

Limits Rounds::limits(bool decodes) const {
  return {ceilings_.read_rate(), ceilings_.dot_rate(), decodes ? ceilings_.decode_rate() : 0};
}

}  // namespace quadrille::bench

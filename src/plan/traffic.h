// SPDX-License-Identifier: Apache-2.0
// What the ranks of a grid send each other in a step, and how long it is predicted to take: the collectives of
// src/parallel and src/moe, one line each.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/memory.h"
#include "plan/rates.h"
#include "plan/routing.h"

namespace quadrille::plan {

struct PlanCollective {
  std::string name;         // "experts: sum"
  const char* method = "";  // "one-shot", "all_reduce", "exchange + all_gather", "all_gather", "all_to_all"
  int64_t calls = 1;        // in a step
  double sent = 0;          // bytes that leave the rank, a call
  double outside = 0;       // of these, to other hosts
  double us = 0;            // a call
  Basis basis = Basis::kMeasured;
};

// One kind of collective between the tp ranks of a group, or between the ep partners of a rank.
class Wires {
 public:
  Wires(const PlanGrid& grid, const GpuRates& gpu, const LinkRates& links) : grid_(grid), gpu_(gpu), links_(links) {}

  // An fp32 vector of so many bytes, reduced in rank order over the tp ranks (a maximum never goes through the
  // library's own reduction).
  PlanCollective reduce(std::string name, int64_t calls, double bytes, bool takes_max) const;
  // Every tp (ep) rank gives `bytes`.
  PlanCollective gather_tp(std::string name, int64_t calls, double bytes) const;
  PlanCollective gather_ep(std::string name, int64_t calls, double bytes) const;
  // Rows that the busiest rank sends to, or gets from, its ep partners.
  PlanCollective exchange_ep(std::string name, int64_t calls, double bytes) const;

 private:
  struct Peers {
    int size, outside;
  };
  Peers tp() const { return {grid_.tp, grid_.tp_partners_outside()}; }
  Peers ep() const { return {grid_.ep, grid_.ep_partners_outside()}; }
  PlanCollective transfer(std::string name, int64_t calls, LinkKind kind, double sent, const Peers& peers) const;
  double reduction_us(double read, double written) const;

  const PlanGrid& grid_;
  const GpuRates& gpu_;
  const LinkRates& links_;
};

// Of the routed experts of `layers` layers, with the scales of so many rows of a shared expert; of everything (these
// included). Empty for one rank.
std::vector<PlanCollective> expert_collectives(const PlanShape& shape, const Wires& wires, const PlanGrid& grid,
                                               int64_t tokens, int64_t layers, double shared_rows);
std::vector<PlanCollective> step_collectives(const PlanShape& shape, const Wires& wires, const PlanGrid& grid,
                                             const PlanLoad& load, const StepTokens& step);

}  // namespace quadrille::plan

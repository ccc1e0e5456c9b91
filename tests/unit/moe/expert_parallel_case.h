// SPDX-License-Identifier: Apache-2.0
// A layer whose experts are spread over ranks that are threads, for the tests of expert parallelism: every form of the
// layer, any placement, tensor-parallel ranks beside it, and what the ranks sent each other.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "kernels/api/registry.h"
#include "moe/dispatch.h"
#include "parallel/communicator.h"
#include "parallel/thread_group.h"
#include "unit/moe/cut_experts.h"

namespace quadrille::moe {

// Hands everything on and counts the bytes that go to other ranks.
class CountingCommunicator final : public parallel::Communicator {
 public:
  explicit CountingCommunicator(parallel::Communicator& inner)
      : Communicator(inner.rank(), inner.size(), inner.loss()), inner_(inner) {}
  const char* body() const override { return "counting"; }
  void set_phase(parallel::Phase phase) override {
    phase_ = phase;
    inner_.set_phase(phase);
  }
  parallel::Phase phase() const override { return phase_; }
  void fail(const std::string& why) override { inner_.fail(why); }

  // [calls] bytes to other ranks of each all_to_all_v.
  std::vector<size_t> sent;

 protected:
  Status exchange(parallel::Collective what, std::span<const parallel::Bytes> send,
                  std::span<const parallel::WritableBytes> recv) override {
    std::vector<std::byte> to, from;
    std::vector<size_t> to_bytes, from_bytes;
    for (const parallel::Bytes& part : send) {
      to.insert(to.end(), part.begin(), part.end());
      to_bytes.push_back(part.size());
    }
    for (const parallel::WritableBytes& part : recv) from_bytes.push_back(part.size());
    size_t total = 0;
    for (const size_t bytes : from_bytes) total += bytes;
    from.resize(total);
    if (what == parallel::Collective::kAllToAll) sent.push_back(to.size());
    QD_TRY_STATUS(inner_.all_to_all_v(to, to_bytes, from, from_bytes));
    size_t at = 0;
    for (const parallel::WritableBytes& part : recv) {
      if (!part.empty()) std::memcpy(part.data(), from.data() + at, part.size());
      at += part.size();
    }
    return {};
  }
  Result<std::unique_ptr<Communicator>> make_part(std::vector<int> /*members*/) override {
    return make_error(ErrorCode::kUnsupported, "not split in these tests");
  }
  Status finish() override { return {}; }

 private:
  parallel::Communicator& inner_;
  parallel::Phase phase_ = parallel::Phase::kStart;
};

struct EpForm {
  int64_t group = 64;
  Numerics numerics = Numerics::kExact;
  bool quantised = true;
  kernels::Rounding rounding = kernels::Rounding::kBf16;
  bool weight_on_input = false;
  bool shared = true;
  const char* table = "generic";
};

class EpLayer {
 public:
  static constexpr int64_t kNumExperts = 7, kWidth = 128, kSharedWidth = 64, kTopK = 3;

  EpLayer(const EpForm& form, int64_t tokens)
      : form_(form),
        top_k_(form.weight_on_input ? 1 : kTopK),
        tokens_(tokens),
        experts_(kNumExperts, kWidth, form.group, form.numerics, form.quantised, 1),
        shared_(1, kSharedWidth, form.group, form.numerics, form.quantised, 2) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < kHidden; ++i) gate_.push_back(numerics::bf16_from_f32(normal(random) / 8));
    const bool rounds = form.rounding == kernels::Rounding::kBf16;
    for (int64_t i = 0; i < tokens * kHidden; ++i) {
      const float value = normal(random);
      x_.push_back(rounds ? numerics::round_to_bf16(value) : value);
    }
    for (int64_t route = 0; route < tokens * top_k_; ++route) {
      const auto first = static_cast<int32_t>(random() % kNumExperts);
      ids_.push_back(route % 7 == 3 ? -1 : first);
      weights_.push_back(std::abs(normal(random)) / 2);
    }
    if (tokens > 2) std::fill_n(ids_.begin() + top_k_, top_k_, -1);  // a token that nobody computes
  }

  // Out [tokens, hidden] of `tp` x `placement.num_ranks()` ranks, put together from what each has for its own tokens;
  // with tp, of the first tensor-parallel rank, the others compared with it. null: one expert rank.
  std::vector<float> run(const Placement* placement, int tp = 1) {
    const int ep = placement == nullptr ? 1 : placement->num_ranks();
    std::vector<std::vector<float>> outs(static_cast<size_t>(tp * ep));
    sent.assign(outs.size(), {});
    if (tp * ep == 1) {
      check(run_rank(nullptr, nullptr, nullptr, &outs[0]));
      return outs[0];
    }
    check(parallel::run_rank_threads(tp * ep, [&](parallel::Communicator& world) -> Status {
      const auto at = static_cast<size_t>(world.rank());
      QD_TRY(const auto tensor, world.split(world.rank() / tp));
      QD_TRY(const auto expert, world.split(world.rank() % tp));
      CountingCommunicator counting(*expert);
      QD_TRY_STATUS(run_rank(placement, tensor.get(), &counting, &outs[at]));
      sent[at] = counting.sent;
      return {};
    }));
    std::vector<float> all;
    for (size_t rank = 0; rank < outs.size(); ++rank) {
      const size_t first = rank / static_cast<size_t>(tp) * static_cast<size_t>(tp);
      QD_CHECK(same_bits(outs[rank], outs[first]), "tensor-parallel ranks have the same output");
      if (rank == first) all.insert(all.end(), outs[rank].begin(), outs[rank].end());
    }
    return all;
  }

  static bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
  }

  // Of each rank and each exchange: counts, rows, results.
  std::vector<std::vector<size_t>> sent;
  std::vector<int32_t>& ids() { return ids_; }
  int64_t tokens() const { return tokens_; }

 private:
  static void check(const Status& status) { QD_CHECK(status.ok(), status.ok() ? "" : status.error().message); }

  // The experts of the slots; an unused slot has a copy of expert 0 that must not count.
  Experts held(std::span<const int32_t> slots) const {
    Experts part = experts_;
    part.gate.clear();
    part.up.clear();
    part.down.clear();
    part.bias.clear();
    for (const int32_t slot : slots) {
      const auto expert = static_cast<size_t>(slot == Placement::kFree ? 0 : slot);
      part.gate.push_back(experts_.gate[expert]);
      part.up.push_back(experts_.up[expert]);
      part.down.push_back(experts_.down[expert]);
      part.bias.push_back(experts_.bias[expert]);
    }
    return part;
  }

  // A rank without an expert knows all the same what kind they are.
  Linear empty_of(const Linear& linear) const {
    Linear empty = linear;
    std::visit(
        [](auto& l) {
          l.num_experts = 0;
          l.matrices = nullptr;
          l.bias = nullptr;
        },
        empty);
    return empty;
  }

  Status run_rank(const Placement* placement, parallel::Communicator* tensor, parallel::Communicator* expert,
                  std::vector<float>* out) const {
    ThreadPool pool(1);
    Arena scratch;
    Execution execution{*kernels::select_table(form_.table), {&pool, &scratch}, form_.numerics, form_.rounding};
    execution.ranks = tensor;
    execution.expert_ranks = expert;
    const int tp = tensor == nullptr ? 1 : tensor->size(), tp_rank = tensor == nullptr ? 0 : tensor->rank();
    const int ep_rank = expert == nullptr ? 0 : expert->rank();
    const auto cut = [&](int64_t width) {
      return value_of(layout::cut_in_units(width, layout::kColumnUnit, tp, "width"))[static_cast<size_t>(tp_rank)];
    };
    const bool is_empty = placement != nullptr && placement->num_slots(ep_rank) == 0;
    const Experts own = placement == nullptr || is_empty ? experts_ : held(placement->slots(ep_rank));
    auto prepared = own.prepared(cut(kWidth));
    auto shared = shared_.prepared(cut(kSharedWidth));
    MoeLayer layer;
    layer.rule.num_experts = kNumExperts;
    layer.rule.top_k = top_k_;
    layer.rule.weight_on_input = form_.weight_on_input;
    layer.placement = placement;
    layer.expert_rank = ep_rank;
    layer.experts = prepared.view();
    if (is_empty) {
      layer.experts.gate_up = empty_of(layer.experts.gate_up);
      layer.experts.down = empty_of(layer.experts.down);
    }
    if (form_.shared) {
      layer.shared = shared.view();
      layer.shared_gate_weight = gate_.data();
    }
    QD_TRY_STATUS(check_layer(layer));
    const TokenRange mine = token_range(tokens_, ep_rank, placement == nullptr ? 1 : placement->num_ranks());
    out->assign(static_cast<size_t>(mine.size() * kHidden), -1.0f);
    return run_layer(layer, x_.data() + mine.begin * kHidden, mine.size(),
                     {ids_.data() + mine.begin * top_k_, weights_.data() + mine.begin * top_k_}, execution,
                     out->data());
  }

  EpForm form_;
  int64_t top_k_, tokens_;
  Experts experts_, shared_;
  std::vector<uint16_t> gate_;
  std::vector<float> x_, weights_;
  std::vector<int32_t> ids_;
};

}  // namespace quadrille::moe

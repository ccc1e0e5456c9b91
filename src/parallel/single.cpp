// SPDX-License-Identifier: Apache-2.0
#include "parallel/communicator.h"

namespace quadrille::parallel {
namespace {

class Single final : public Communicator {
 public:
  Single() : Communicator(0, 1, std::make_shared<LossState>()) {}
  const char* body() const override { return "single"; }
  void set_phase(Phase phase) override { phase_ = phase; }
  Phase phase() const override { return phase_; }
  void fail(const std::string& why) override { loss()->declare({0, phase_, why}); }

 protected:
  Status exchange(Collective what, std::span<const Bytes>, std::span<const WritableBytes>) override {
    if (loss()->any()) return loss()->error(collective_name(what), 0);
    return {};
  }
  Result<std::unique_ptr<Communicator>> make_part(std::vector<int>) override { return single_communicator(); }
  Status finish() override { return {}; }

 private:
  Phase phase_ = Phase::kStart;
};

}  // namespace

std::unique_ptr<Communicator> single_communicator() {
  return std::make_unique<Single>();
}

}  // namespace quadrille::parallel

// SPDX-License-Identifier: Apache-2.0
// From the stages of a layer on a GPU to the observer of a step, under the names of the CPU's decoder. Used by the
// device decoder.
#pragma once

#include <cstdint>

#include "model/observer.h"
#include "moe/layer_observer.h"

namespace quadrille::model {

// Stages of one module of one layer.
class DeviceStages final : public moe::LayerObserver {
 public:
  DeviceStages(StepObserver* observer, int64_t layer, Module module)
      : observer_(observer != nullptr && observer->wants_stages() ? observer : nullptr),
        layer_(layer),
        module_(module) {}
  // Null where nobody looks.
  moe::LayerObserver* get() { return observer_ == nullptr ? nullptr : this; }
  explicit operator bool() const { return observer_ != nullptr; }
  void stage(const moe::Stage& stage) override;
  void shared_stage(const moe::Stage& stage) override { observer_->stage(layer_, Module::kShared, stage); }

 private:
  StepObserver* observer_;
  int64_t layer_;
  Module module_;
};

}  // namespace quadrille::model

// SPDX-License-Identifier: Apache-2.0
// The rules of a step (forward.h), tested before anything is computed, so that a bad step is an error and not a wild
// read. Asked by the decoders of the CPU and of a device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/result.h"
#include "model/forward.h"

namespace quadrille::model {

struct StepLimits {
  int64_t vocab_size = 0;
  int64_t max_positions = 0;
  int64_t num_pages = 0;
};
// `room`: floats that the caller has for logits. kInvalidArgument names what breaks the rules.
Status check_step(const Step& step, size_t room, const StepLimits& limits);

}  // namespace quadrille::model

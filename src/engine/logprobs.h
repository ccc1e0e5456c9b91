// SPDX-License-Identifier: Apache-2.0
// Log-probabilities of one row of logits, in double and in one fixed order. Called by the engine for the tokens of an
// answer and of a prompt.
#pragma once

#include <cstdint>
#include <span>

#include "engine/request.h"

namespace quadrille::engine {

// The largest logit. kInvalidData when one is NaN or +infinity, or all are -infinity (one is a masked id).
Result<float> checked_max(std::span<const float> logits);

// The log-probability of `id` and of the `count` best ids (best first, ties to the lower id):
// (logit - max) - ln(sum over ascending ids of e^(logit - max)). count < 0: no log-probability, only the id.
// logits: [vocab]. Errors as checked_max.
Result<TokenOutput> score_token(std::span<const float> logits, int32_t id, int32_t count);

}  // namespace quadrille::engine

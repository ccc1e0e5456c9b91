// SPDX-License-Identifier: Apache-2.0
// quadrille verify --against: the greedy texts of one model on two devices. Two devices add in other orders, so texts
// may differ where two logits lie near each other; this says for each that does whether they do. Called by
// cmd_verify.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/console.h"
#include "cli/verify_subject.h"
#include "core/result.h"
#include "model/any_model.h"

namespace quadrille::cli {

// Where the texts of one request part: both models are asked again, with all tokens up to there in one step.
struct DeviceDifference {
  int64_t prompt = 0;
  int64_t step = 0;              // of the answer
  int32_t token[2] = {};         // of each device; of an ended answer the best of the stop ids
  double margin[2] = {};         // on each device: the logit of its token less that of the other's
  double top_margin[2] = {};     // on each device: its largest logit less its second
  double difference = 0;         // the largest one of a logit between the devices, at this step
  double difference_before = 0;  // the same over all positions before it
  bool chooses_again[2] = {};    // each device, asked again, prefers its token to the other's
  // Each of two logits may move by what logits differ elsewhere; and what a device chose it chooses again, for its bits
  // depend on neither batch nor chunk.
  bool is_explained() const {
    return chooses_again[0] && chooses_again[1] && margin[0] + margin[1] <= 2 * difference_before;
  }
};

// `ids`: the two answers, which differ.
Result<DeviceDifference> explain_devices(model::Forward& first, model::Forward& second, const engine::Request& request,
                                         const std::vector<int32_t>& first_ids, const std::vector<int32_t>& second_ids);

// Loads options.model.folder on --device and on --against, answers on both and prints what differs. kInvalidData where
// something is not explained.
Status verify_devices(Console& console, const VerifyOptions& options);
// What cannot be compared, before anything is loaded.
Status check_against(const VerifyOptions& options);

}  // namespace quadrille::cli

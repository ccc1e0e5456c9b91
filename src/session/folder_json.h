// SPDX-License-Identifier: Apache-2.0
// The JSON of what a folder holds and of what was made of one: the same for the commands and for the C functions.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/api/problems.h"
#include "model/description.h"
#include "model/prepare_folder.h"
#include "quantize/folder.h"

namespace quadrille::session {

std::string group_text(int64_t group_size);  // "128", "channel"
const char* scoring_text(moe::Scoring scoring);

nlohmann::json config_json(const model::ModelConfig& config);
nlohmann::json description_json(const model::ModelDescription& description);
nlohmann::json verdicts_json(const std::vector<model::TpVerdict>& verdicts);
nlohmann::json quantize_json(const std::string& in, const std::string& out, const quantize::QuantizeOptions& options,
                             const quantize::QuantizeReport& report);
nlohmann::json prepare_json(const std::string& in, const std::string& out, kernels::Numerics numerics,
                            const model::PrepareReport& report);

}  // namespace quadrille::session

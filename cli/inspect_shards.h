// SPDX-License-Identifier: Apache-2.0
// What each rank of a grid gets, as a table and as JSON, for inspect.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/tp_legality.h"

namespace quadrille::cli {

// A line a rank: of layers that differ, the first of each kind.
std::string shares_text(const std::vector<model::RankShare>& shares);

// An object a rank; ranges are [begin, end) of the whole model; layers that get the same share an entry.
nlohmann::json shares_json(const std::vector<model::RankShare>& shares);

}  // namespace quadrille::cli

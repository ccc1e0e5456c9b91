// SPDX-License-Identifier: Apache-2.0
// Inside of compressed_tensors: one config group -> what it means for the modules it targets, or a refusal by name.
#pragma once

#include <string>

#include "formats/compressed_tensors.h"

namespace quadrille::formats {

struct QuantizationScheme {
  QuantizationKind kind = QuantizationKind::kUnquantized;
  int64_t group_size = 0;
  WeightFormat format = WeightFormat::kPackQuantized;
  bool operator==(const QuantizationScheme&) const = default;
};

struct SchemeGroup {
  QuantizationScheme scheme;
  std::vector<std::string> targets;
};

// `group` is {targets, weights, ...}, or a bare list of targets under the name of a preset. `global_format` is the
// format of the whole config, "" when absent. Errors as QuantizationConfig::parse().
Result<SchemeGroup> parse_scheme_group(const JsonObject& groups, const std::string& name,
                                       const std::string& global_format);

// Nothing for a format that this engine reads; "mixed-precision" is legal for the whole config only.
Status check_format(const std::string& format, const std::string& where, bool is_global);

}  // namespace quadrille::formats

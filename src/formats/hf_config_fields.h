// SPDX-License-Identifier: Apache-2.0
// Inside of hf_config: fills the fields of HfConfig that stand alone in the file.
#pragma once

#include "formats/hf_config.h"

namespace quadrille::formats {

// Errors: kInvalidData naming the key, what is legal and what was found.
Status read_plain_fields(const JsonObject& object, HfConfig& config);

}  // namespace quadrille::formats

// SPDX-License-Identifier: Apache-2.0
// What of the options of a model on a GPU is refused before the machine or a folder is looked at. Called by
// device_model.cpp.
#pragma once

#include "core/result.h"
#include "model/device_model.h"

namespace quadrille::model {

// Errors: kInvalidArgument for what a caller must not leave out or make negative; kUnsupported, with what to do, for
// round f32 and expert-parallel ranks.
Status check_device_options(const LoadOptions& options, const DeviceOptions& device);

}  // namespace quadrille::model

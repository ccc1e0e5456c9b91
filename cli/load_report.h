// SPDX-License-Identifier: Apache-2.0
// Where the time of a load to a GPU went, beside the rate that this machine's link reaches: --load-report.
#pragma once

#include "cli/console.h"
#include "core/result.h"
#include "model/device_model.h"

namespace quadrille::cli {

// Seconds from the start of this process to now, to the system's hundredth of a second; 0 where it does not say.
double seconds_since_process_start();

// Lines on stderr. `ready_seconds`: from the start of the process until the model was loaded. Probes the link, which
// takes about 20 ms.
Status print_load_report(Console& console, const model::DeviceModel& model, double ready_seconds);

}  // namespace quadrille::cli

// SPDX-License-Identifier: Apache-2.0
// What this folder offers to the table (table.cpp). Contracts: kernels/api/device_probe.h.
#pragma once

#include "device/handles.h"
#include "kernels/api/device_probe.h"

namespace quadrille::kernels::cuda {

void probe_read(const DeviceProbeRead& p, device::Stream stream);
void probe_products(const DeviceProbeProducts& p, device::Stream stream);

}  // namespace quadrille::kernels::cuda

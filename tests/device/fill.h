// SPDX-License-Identifier: Apache-2.0
// Fills device memory with the numbers of random_data.h, on a stream.
#pragma once

#include <cstdint>

#include "device/handles.h"
#include "kernels/api/device_problems.h"

namespace quadrille::testing {

// count codes (a multiple of 8) in the form of `source`.
void fill_codes(void* codes, int64_t count, kernels::W4Source source, uint64_t seed, device::Stream stream);
void fill_scales(uint16_t* scales, int64_t count, uint64_t seed, device::Stream stream);
void fill_small_numbers(float* values, int64_t count, uint64_t seed, device::Stream stream);
void fill_small_weights(uint16_t* values, int64_t count, uint64_t seed, device::Stream stream);
// x [num_tokens, hidden]: row t is the token keys[t].
void fill_activations(uint16_t* x, const int64_t* keys, int64_t num_tokens, int64_t hidden, bool nonfinite,
                      uint64_t seed, device::Stream stream);
void fill_e4m3(uint8_t* codes, int64_t count, uint64_t seed, device::Stream stream);

}  // namespace quadrille::testing

// SPDX-License-Identifier: Apache-2.0
// The avx2 unit: the bodies over its vocabulary. No standard containers or algorithms here, nothing outside anonymous
// namespaces but the one struct: no weak symbol of this unit may reach a machine without its instructions.
#include "kernels/cpu/avx2/digits.h"
#include "kernels/cpu/avx2/simd.h"

#include "kernels/cpu/body/parts.h"

namespace quadrille::kernels::cpu {

namespace {
constexpr DigitParts kDigits = digit_parts<Digits>();
}

constinit const IsaParts kAvx2Parts = parts_of<Simd>(&kDigits);

}  // namespace quadrille::kernels::cpu

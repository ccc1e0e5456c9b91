// SPDX-License-Identifier: Apache-2.0
// The avx512 unit: the bodies over its vocabulary. No standard containers or algorithms here, nothing outside anonymous
// namespaces but the one struct: no weak symbol of this unit may reach a machine without its instructions.
#include "kernels/cpu/avx512/digits.h"
#include "kernels/cpu/avx512/simd.h"

#include "kernels/cpu/body/parts.h"

namespace quadrille::kernels::cpu {

namespace {
constexpr DigitParts kDigits = digit_parts<Digits>();
}

constinit const IsaParts kAvx512Parts = parts_of<Simd>(&kDigits, &kAvx512VnniDigits);

}  // namespace quadrille::kernels::cpu

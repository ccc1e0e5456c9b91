// SPDX-License-Identifier: Apache-2.0
// The avx512 unit: the bodies over its vocabulary. No standard containers or algorithms here, nothing outside anonymous
// namespaces but the one struct: no weak symbol of this unit may reach a machine without its instructions.
#include "kernels/cpu/avx512/digits.h"
#include "kernels/cpu/avx512/simd.h"

#include "kernels/cpu/body/parts.h"

namespace quadrille::kernels::cpu {

namespace {
constexpr DigitParts kDigits = digit_parts<Digits>();

constexpr IsaParts parts_with_vnni() {
  IsaParts parts = parts_of<Simd>(&kDigits, &kAvx512VnniDigits);
  parts.vllm_vnni = &kAvx512VnniVllm;
  return parts;
}
}  // namespace

constinit const IsaParts kAvx512Parts = parts_with_vnni();

}  // namespace quadrille::kernels::cpu

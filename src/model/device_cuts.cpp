// SPDX-License-Identifier: Apache-2.0
// A part (gate, up, or all modules stacked) lies as prepare::W4PartLayout says; of stacked modules each piece holds
// theirs one behind the other.
#include "model/device_cuts.h"

#include <cstring>

namespace quadrille::model {
namespace {

// The modules of part `part`.
std::span<const CutModule> modules_of(const std::vector<CutModule>& modules, int32_t num_parts, int32_t part) {
  const std::span all(modules);
  return num_parts == 2 ? all.subspan(static_cast<size_t>(part), 1) : all;
}

}  // namespace

prepare::W4PartLayout W4Gatherer::layout_of(std::span<const CutModule> part) const {
  size_t codes = 0, scales = 0, biases = 0, maxima = 0;
  for (const CutModule& module : part) {
    codes += module.code_bytes();
    scales += sizeof(uint16_t) * module.scale_count();
    biases += sizeof(float) * module.bias_count();
    maxima += sizeof(float) * absmax_count(module);
  }
  return {codes, scales, biases, maxima};
}

size_t W4Gatherer::bytes(const std::vector<CutModule>& modules, int32_t num_parts) const {
  size_t bytes = 0;
  for (int32_t part = 0; part < num_parts; ++part) bytes += layout_of(modules_of(modules, num_parts, part)).bytes();
  return bytes;
}

prepare::DeviceW4Expert W4Gatherer::places(const std::vector<CutModule>& modules, int32_t num_parts,
                                           std::byte* at) const {
  prepare::DeviceW4Expert expert;
  for (int32_t part = 0; part < num_parts; ++part) {
    const prepare::W4PartLayout layout = layout_of(modules_of(modules, num_parts, part));
    expert.codes[part] = at;
    expert.scales[part] = at + layout.scales_at();
    if (layout.bias > 0) expert.bias[part] = at + layout.bias_at();
    if (layout.row_absmax > 0) expert.row_absmax = at + layout.row_absmax_at();
    at += layout.bytes();
  }
  return expert;
}

Status W4Gatherer::read(const std::vector<CutModule>& modules, int32_t num_parts, std::byte* at) const {
  for (int32_t part = 0; part < num_parts; ++part) {
    const std::span<const CutModule> stacked = modules_of(modules, num_parts, part);
    const prepare::W4PartLayout layout = layout_of(stacked);
    std::byte* code = at;
    auto* scale = reinterpret_cast<uint16_t*>(at + layout.scales_at());
    auto* bias = reinterpret_cast<float*>(at + layout.bias_at());
    auto* absmax = reinterpret_cast<float*>(at + layout.row_absmax_at());
    for (const CutModule& module : stacked) {
      const CanonicalRoom room{
          {code, module.code_bytes()}, {scale, module.scale_count()}, {absmax, absmax_count(module)}};
      QD_TRY_STATUS(reader_.read_canonical(*module.source, module.cut, room));
      if (module.bias_count() > 0) {
        QD_TRY(const std::vector<float> values, reader_.read_bias(*module.source, module.rows()));
        std::memcpy(bias, values.data(), values.size() * sizeof(float));
      }
      code += module.code_bytes();
      scale += module.scale_count();
      bias += module.bias_count();
      absmax += absmax_count(module);
    }
    at += layout.bytes();
  }
  return {};
}

}  // namespace quadrille::model

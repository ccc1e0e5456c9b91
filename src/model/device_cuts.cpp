// SPDX-License-Identifier: Apache-2.0
#include "model/device_cuts.h"

#include <cstring>

namespace quadrille::model {

size_t W4Gatherer::bytes(const std::vector<CutModule>& modules) const {
  size_t codes = 0, scales = 0, floats = 0;
  for (const CutModule& m : modules) {
    codes += m.code_bytes();
    scales += 2 * m.scale_count();
    floats += 4 * (m.bias_count() + absmax_count(m));
  }
  return aligned(codes) + aligned(scales) + aligned(floats);
}

Status W4Gatherer::read(const std::vector<CutModule>& modules, int32_t num_parts, std::byte* at,
                        prepare::DeviceW4Expert* expert) const {
  size_t codes = 0, scales = 0;
  for (const CutModule& m : modules) codes += m.code_bytes();
  for (const CutModule& m : modules) scales += 2 * m.scale_count();
  std::byte* code = at;
  std::byte* scale = at + aligned(codes);
  std::byte* floats = scale + aligned(scales);
  for (size_t i = 0; i < modules.size(); ++i) {
    const CutModule& m = modules[i];
    const size_t part = num_parts == 2 ? i : 0;
    CanonicalRoom room;
    room.codes = {code, m.code_bytes()};
    room.scales = {reinterpret_cast<uint16_t*>(scale), m.scale_count()};
    if (i == 0 || num_parts == 2) {
      expert->codes[part] = code;
      expert->scales[part] = scale;
      if (m.bias_count() > 0) expert->bias[part] = floats;
    }
    code += room.codes.size();
    scale += room.scales.size_bytes();
    if (m.bias_count() > 0) {
      QD_TRY(const std::vector<float> values, reader_.read_bias(*m.source, m.rows()));
      std::memcpy(floats, values.data(), values.size() * sizeof(float));
      floats += values.size() * sizeof(float);
    }
    if (absmax_count(m) > 0) {
      room.row_absmax = {reinterpret_cast<float*>(floats), absmax_count(m)};
      expert->row_absmax = floats;
      floats += room.row_absmax.size_bytes();
    }
    QD_TRY_STATUS(reader_.read_canonical(*m.source, m.cut, room));
  }
  return {};
}

}  // namespace quadrille::model

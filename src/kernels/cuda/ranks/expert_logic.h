// SPDX-License-Identifier: Apache-2.0
// Which rank has a token, and where: the index arithmetic of the kernels of expert-parallel ranks, on host and device.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "kernels/api/peer_problems.h"

namespace quadrille::kernels::cuda {

struct TokenPlace {
  int32_t rank;
  int64_t token;  // among the rank's own
};
// Ranks without tokens are passed over: first[r] == first[r + 1].
QD_HD constexpr TokenPlace token_place(const RankTokens& p, int64_t token) {
  int32_t rank = 0;
  while (token >= p.first[rank + 1]) ++rank;
  return {rank, token - p.first[rank]};
}

QD_HD constexpr const uint8_t* record_of(const RankTokens& p, TokenPlace place) {
  return p.records[place.rank] + place.token * token_record_pitch(p.act_bytes, p.top_k);
}

// The expert here that computes a route of `rank`'s token, or -1; `bad`: the id is none of the router's.
struct LocalRoute {
  int32_t expert;
  bool bad;
};
QD_HD constexpr LocalRoute local_route(const LocalRoutes& p, int32_t rank, int32_t id) {
  if (id < 0 || id >= p.num_experts) return {-1, id != -1};
  return {p.local[rank * p.num_experts + id], false};
}

}  // namespace quadrille::kernels::cuda

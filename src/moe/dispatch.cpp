// SPDX-License-Identifier: Apache-2.0
// A message to a rank is its routes, the scales of its rows (kCodes alone), its rows. How many of each follows from the
// counts that go ahead.
#include "moe/dispatch.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "core/check.h"
#include "numerics/bf16.h"
#include "parallel/communicator.h"

namespace quadrille::moe {
namespace {

using parallel::Communicator;

// What a rank announces to another.
struct Counts {
  int64_t rows = 0, routes = 0;
};

struct RowFormat {
  RowForm form;
  int64_t width;

  int64_t row_bytes() const {
    return width * (form == RowForm::kCodes ? 1 : form == RowForm::kBf16 ? int64_t{2} : int64_t{4});
  }
  int64_t scale_bytes() const { return form == RowForm::kCodes ? int64_t{sizeof(float)} : 0; }
  int64_t message_bytes(const Counts& counts) const {
    return counts.routes * int64_t{sizeof(SendPlan::Route)} + counts.rows * (scale_bytes() + row_bytes());
  }
};

// fp32 values -> the bytes that travel, and back. A value of kBf16 has zeros in its lower half.
void pack_row(const float* row, const RowFormat& format, uint8_t* bytes) {
  if (format.form == RowForm::kF32) {
    std::memcpy(bytes, row, static_cast<size_t>(format.row_bytes()));
    return;
  }
  for (int64_t i = 0; i < format.width; ++i) {
    const auto code = static_cast<uint16_t>(numerics::bits_of(row[i]) >> 16);
    std::memcpy(bytes + 2 * i, &code, sizeof(code));
  }
}

void unpack_row(const uint8_t* bytes, const RowFormat& format, float* row) {
  if (format.form == RowForm::kF32) {
    std::memcpy(row, bytes, static_cast<size_t>(format.row_bytes()));
    return;
  }
  for (int64_t i = 0; i < format.width; ++i) {
    uint16_t code;
    std::memcpy(&code, bytes + 2 * i, sizeof(code));
    row[i] = numerics::bf16_to_f32(code);
  }
}

int64_t sum_of(const std::vector<size_t>& sizes) {
  return static_cast<int64_t>(std::accumulate(sizes.begin(), sizes.end(), size_t{0}));
}

struct Message {
  const uint8_t* bytes = nullptr;
  std::vector<size_t> size;  // [ranks]
};

// `send` to every rank, from each what `recv_size` says; in scratch.
Result<const uint8_t*> exchange(const Message& send, const std::vector<size_t>& recv_size, const Execution& execution) {
  const int64_t recv_bytes = sum_of(recv_size);
  uint8_t* received = execution.kernels.scratch->take<uint8_t>(recv_bytes);
  const std::span<const uint8_t> to(send.bytes, static_cast<size_t>(sum_of(send.size)));
  const std::span<uint8_t> from(received, static_cast<size_t>(recv_bytes));
  QD_TRY_STATUS(
      execution.expert_ranks->all_to_all_v(std::as_bytes(to), send.size, std::as_writable_bytes(from), recv_size));
  return static_cast<const uint8_t*>(received);
}

Result<std::vector<Counts>> exchange_counts(const SendPlan& plan, const Execution& execution) {
  std::vector<Counts> mine, theirs(plan.rows_to.size());
  for (size_t rank = 0; rank < plan.rows_to.size(); ++rank) mine.push_back({plan.rows_to[rank], plan.routes_to[rank]});
  const std::vector<size_t> bytes(mine.size(), sizeof(Counts));
  QD_TRY_STATUS(execution.expert_ranks->all_to_all_v(std::as_bytes(std::span(mine)), bytes,
                                                     std::as_writable_bytes(std::span(theirs)), bytes));
  return theirs;
}

// The messages to all ranks behind each other.
Message write_messages(const SendPlan& plan, const LinearInput& input, const RowFormat& format,
                       const Execution& execution) {
  Message message;
  for (size_t rank = 0; rank < plan.rows_to.size(); ++rank) {
    message.size.push_back(static_cast<size_t>(format.message_bytes({plan.rows_to[rank], plan.routes_to[rank]})));
  }
  uint8_t* to = execution.kernels.scratch->take<uint8_t>(sum_of(message.size));
  message.bytes = to;
  int64_t first_row = 0, first_route = 0;
  for (size_t rank = 0; rank < plan.rows_to.size(); ++rank) {
    const int64_t rows = plan.rows_to[rank], routes = plan.routes_to[rank];
    const auto route_bytes = static_cast<size_t>(routes) * sizeof(SendPlan::Route);
    if (routes > 0) std::memcpy(to, plan.routes.data() + first_route, route_bytes);
    uint8_t* scales = to + route_bytes;
    uint8_t* values = scales + rows * format.scale_bytes();
    execution.kernels.pool->run(rows, [&](int64_t i) {
      const int64_t row = plan.token_of_row[first_row + i];
      uint8_t* value = values + i * format.row_bytes();
      if (format.form != RowForm::kCodes) return pack_row(input.x() + row * format.width, format, value);
      std::memcpy(scales + i * format.scale_bytes(), input.act_scale() + row, sizeof(float));
      std::memcpy(value, input.act() + row * format.width, static_cast<size_t>(format.width));
    });
    to += message.size[rank];
    first_row += rows;
    first_route += routes;
  }
  return message;
}

// Rows of all ranks behind each other, in the form that the layer reads.
class RowSink {
 public:
  RowSink(int64_t num_rows, const RowFormat& format, const Execution& execution) : format_(format), rows_(num_rows) {
    Arena* scratch = execution.kernels.scratch;
    if (format.form == RowForm::kCodes) {
      act_ = scratch->take<uint8_t>(num_rows * format.width);
      act_scale_ = scratch->take<float>(num_rows);
    } else {
      x_ = scratch->take<float>(num_rows * format.width);
    }
  }
  // `scales` and `values` of `count` rows, to be put at row `first`.
  void take(const uint8_t* scales, const uint8_t* values, int64_t first, int64_t count, ThreadPool* pool) {
    if (count == 0) return;
    if (format_.form == RowForm::kCodes) {
      std::memcpy(act_scale_ + first, scales, static_cast<size_t>(count) * sizeof(float));
      std::memcpy(act_ + first * format_.width, values, static_cast<size_t>(count * format_.width));
      return;
    }
    pool->run(count, [&](int64_t i) {
      unpack_row(values + i * format_.row_bytes(), format_, x_ + (first + i) * format_.width);
    });
  }
  LinearInput input() const {
    if (format_.form == RowForm::kCodes) return {act_, act_scale_, rows_, format_.width};
    return {x_, rows_, format_.width};
  }

 private:
  RowFormat format_;
  int64_t rows_;
  uint8_t* act_ = nullptr;
  float* act_scale_ = nullptr;
  float* x_ = nullptr;
};

// The slot of a route that rank `from` sent.
Result<int32_t> local_slot(const SendPlan::Route& route, const Counts& counts, int from, const Placement& placement,
                           int own) {
  const bool is_expert = route.expert >= 0 && route.expert < placement.num_experts();
  if (is_expert && placement.holds(own, route.expert) && route.row >= 0 && route.row < counts.rows) {
    return placement.slot(own, route.expert);
  }
  return make_error(ErrorCode::kInvalidData,
                    "expert-parallel rank {} sent row {} of {} for expert {}, which rank {} does not hold: the ranks "
                    "must have the same placement",
                    from, route.row, counts.rows, route.expert, own);
}

// Sorts the received routes by local slot.
Status sort_routes(const std::vector<int32_t>& slots, const std::vector<int32_t>& rows, int64_t num_slots,
                   ReceivedRows* received) {
  const auto num_routes = static_cast<int64_t>(slots.size());
  QD_TRY_STATUS(build_plan(slots, num_routes, 1, num_slots, &received->plan));
  received->row_of_slot.resize(slots.size());
  for (int64_t slot = 0; slot < num_routes; ++slot) {
    received->row_of_slot[slot] = rows[received->plan.route_of_slot[slot]];
  }
  return {};
}

Result<ReceivedRows> read_messages(const uint8_t* bytes, const std::vector<Counts>& counts, const RowFormat& format,
                                   const Placement& placement, const Execution& execution) {
  const int own = execution.expert_ranks->rank();
  int64_t num_rows = 0;
  for (const Counts& from : counts) num_rows += from.rows;
  RowSink sink(num_rows, format, execution);
  ReceivedRows received;
  std::vector<int32_t> slots, rows;
  int64_t first = 0;
  for (size_t rank = 0; rank < counts.size(); ++rank) {
    const Counts& from = counts[rank];
    std::vector<SendPlan::Route> routes(static_cast<size_t>(from.routes));
    const size_t route_bytes = routes.size() * sizeof(SendPlan::Route);
    if (from.routes > 0) std::memcpy(routes.data(), bytes, route_bytes);
    for (const SendPlan::Route& route : routes) {
      QD_TRY(const int32_t slot, local_slot(route, from, static_cast<int>(rank), placement, own));
      slots.push_back(slot);
      rows.push_back(static_cast<int32_t>(first) + route.row);
    }
    const uint8_t* scales = bytes + route_bytes;
    sink.take(scales, scales + from.rows * format.scale_bytes(), first, from.rows, execution.kernels.pool);
    received.routes_from.push_back(from.routes);
    bytes += format.message_bytes(from);
    first += from.rows;
  }
  received.input = sink.input();
  QD_TRY_STATUS(sort_routes(slots, rows, placement.num_slots(own), &received));
  return received;
}

Status check_ids(std::span<const int32_t> ids, int64_t top_k, int64_t num_experts) {
  if (ids.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    return make_error(ErrorCode::kInvalidArgument, "dispatch: {} routes; at most 2^31 - 1 fit", ids.size());
  }
  for (size_t route = 0; route < ids.size(); ++route) {
    if (ids[route] >= -1 && ids[route] < num_experts) continue;
    return make_error(ErrorCode::kInvalidArgument,
                      "dispatch: token {}, choice {}: expert {}; legal are 0 to {}, or -1 for an expert of no rank",
                      route / static_cast<size_t>(top_k), route % static_cast<size_t>(top_k), ids[route],
                      num_experts - 1);
  }
  return {};
}

}  // namespace

Status plan_send(std::span<const int32_t> ids, int64_t num_tokens, int64_t top_k, const Placement& placement,
                 int source, SendPlan* plan) {
  QD_CHECK(num_tokens >= 0 && top_k >= 1, "shapes of a plan");
  QD_CHECK(static_cast<int64_t>(ids.size()) == num_tokens * top_k, "ids must be [num_tokens, top_k]");
  QD_TRY_STATUS(check_ids(ids, top_k, placement.num_experts()));
  const std::vector<int32_t> serving = placement.serving_ranks(source);
  std::vector<std::vector<int32_t>> routes_of(static_cast<size_t>(placement.num_ranks()));
  for (size_t route = 0; route < ids.size(); ++route) {
    if (ids[route] >= 0) routes_of[static_cast<size_t>(serving[ids[route]])].push_back(static_cast<int32_t>(route));
  }
  *plan = {};
  plan->place_of_route.assign(ids.size(), -1);
  for (const std::vector<int32_t>& routes : routes_of) {
    int32_t row = -1, last_token = -1;
    for (const int32_t route : routes) {
      const auto token = static_cast<int32_t>(route / top_k);
      if (token != last_token) {
        plan->token_of_row.push_back(token);
        last_token = token;
        ++row;
      }
      plan->place_of_route[route] = static_cast<int32_t>(plan->routes.size());
      plan->routes.push_back({row, ids[route]});
    }
    plan->rows_to.push_back(row + 1);
    plan->routes_to.push_back(static_cast<int64_t>(routes.size()));
  }
  return {};
}

Result<ReceivedRows> dispatch_rows(const SendPlan& plan, LinearInput* input, RowForm form, const Placement& placement,
                                   const Execution& execution) {
  QD_CHECK(placement.num_ranks() == execution.expert_ranks->size(), "a placement over the ranks that exchange");
  if (form == RowForm::kCodes) input->quantise(execution);
  const RowFormat format{form, input->k()};
  QD_TRY(const std::vector<Counts> counts, exchange_counts(plan, execution));
  const Message send = write_messages(plan, *input, format, execution);
  std::vector<size_t> recv_size;
  for (const Counts& from : counts) recv_size.push_back(static_cast<size_t>(format.message_bytes(from)));
  QD_TRY(const uint8_t* received, exchange(send, recv_size, execution));
  return read_messages(received, counts, format, placement, execution);
}

Result<const float*> return_rows(const SendPlan& plan, const ReceivedRows& received, const float* rows, int64_t width,
                                 RowForm form, const Execution& execution) {
  QD_CHECK(form != RowForm::kCodes, "outputs are not quantised");
  const RowFormat format{form, width};
  Message send;
  std::vector<size_t> recv_size;
  for (const int64_t routes : received.routes_from) {
    send.size.push_back(static_cast<size_t>(routes * format.row_bytes()));
  }
  for (const int64_t routes : plan.routes_to) recv_size.push_back(static_cast<size_t>(routes * format.row_bytes()));
  const int64_t num_routes = received.plan.num_slots();
  uint8_t* packed = execution.kernels.scratch->take<uint8_t>(num_routes * format.row_bytes());
  send.bytes = packed;
  execution.kernels.pool->run(num_routes, [&](int64_t route) {
    pack_row(rows + received.plan.slot_of_route[route] * width, format, packed + route * format.row_bytes());
  });
  QD_TRY(const uint8_t* bytes, exchange(send, recv_size, execution));
  float* out = execution.kernels.scratch->take<float>(plan.num_routes() * width);
  execution.kernels.pool->run(plan.num_routes(), [&](int64_t route) {
    unpack_row(bytes + route * format.row_bytes(), format, out + route * width);
  });
  return static_cast<const float*>(out);
}

TokenRange token_range(int64_t num_tokens, int rank, int ranks) {
  const int64_t each = num_tokens / ranks, longer = num_tokens % ranks;
  const int64_t begin = each * rank + std::min<int64_t>(rank, longer);
  return {begin, begin + each + (rank < longer ? 1 : 0)};
}

Status gather_tokens(const float* mine, int64_t num_tokens, int64_t width, RowForm form, const Execution& execution,
                     float* all) {
  QD_CHECK(form != RowForm::kCodes, "outputs are not quantised");
  const RowFormat format{form, width};
  Communicator& ranks = *execution.expert_ranks;
  std::vector<size_t> bytes;
  for (int rank = 0; rank < ranks.size(); ++rank) {
    bytes.push_back(static_cast<size_t>(token_range(num_tokens, rank, ranks.size()).size() * format.row_bytes()));
  }
  const TokenRange own = token_range(num_tokens, ranks.rank(), ranks.size());
  Arena* scratch = execution.kernels.scratch;
  uint8_t* packed = scratch->take<uint8_t>(num_tokens * format.row_bytes());
  uint8_t* in_place = packed + own.begin * format.row_bytes();
  execution.kernels.pool->run(
      own.size(), [&](int64_t row) { pack_row(mine + row * width, format, in_place + row * format.row_bytes()); });
  const std::span<const uint8_t> own_bytes(in_place, bytes[static_cast<size_t>(ranks.rank())]);
  const std::span<uint8_t> all_bytes(packed, static_cast<size_t>(num_tokens * format.row_bytes()));
  QD_TRY_STATUS(ranks.all_gather_v(std::as_bytes(own_bytes), bytes, std::as_writable_bytes(all_bytes)));
  execution.kernels.pool->run(
      num_tokens, [&](int64_t row) { unpack_row(packed + row * format.row_bytes(), format, all + row * width); });
  return {};
}

}  // namespace quadrille::moe

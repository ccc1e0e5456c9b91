// SPDX-License-Identifier: Apache-2.0
// The layer on the device against the CPU table `hopper`, bit for bit, over the lists of conformance_cases.h; and
// against itself: tile choices, positions in the batch, graphs, and the form of the routing input change no bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "device/compare_bits.h"
#include "device/layer_case.h"
#include "device/random_data.h"

namespace quadrille::testing {
namespace {

ThreadPool& all_cores() {
  static ThreadPool pool;
  return pool;
}

// First, last, middle, a random one; with `nonfinite` also the first of each kind of row. All where there are few.
std::vector<int64_t> chosen_tokens(const LayerSpec& spec) {
  if (spec.tokens <= 4) return keys_in_order(spec.tokens);
  std::set<int64_t> keys{0, spec.tokens - 1, spec.tokens / 2};
  for (uint64_t i = 0; keys.size() < 4; ++i) {
    keys.insert(static_cast<int64_t>(hash(spec.seed, 800 + i) % static_cast<uint64_t>(spec.tokens)));
  }
  std::set<RowKind> kinds;
  for (int64_t t = 0; t < spec.tokens && spec.nonfinite; ++t) {
    if (kinds.insert(row_kind(spec.seed, t, true)).second) keys.insert(t);
  }
  return {keys.begin(), keys.end()};
}

std::vector<int64_t> shuffled(int64_t tokens, uint64_t seed) {
  std::vector<int64_t> keys = keys_in_order(tokens);
  for (size_t i = keys.size(); i > 1; --i) std::swap(keys[i - 1], keys[hash(seed, i) % i]);
  return keys;
}

std::vector<uint16_t> gather(const std::vector<uint16_t>& rows, const std::vector<int64_t>& keys, int64_t width) {
  std::vector<uint16_t> out;
  for (int64_t key : keys) out.insert(out.end(), rows.begin() + key * width, rows.begin() + (key + 1) * width);
  return out;
}

class Conformance : public ::testing::TestWithParam<LayerSpec> {
 protected:
  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
    layer_case_.emplace(GetParam(), &all_cores());
  }

  // Runs `call` and compares its rows with those of the first run.
  void expect_same(const char* what, const Call& call) {
    std::string problems;
    const auto found = layer_case_->run(call, &problems);
    EXPECT_EQ(problems, "") << what;
    const int64_t width = GetParam().hidden;
    EXPECT_EQ(bit_differences(found, gather(base_, call.keys, width), width), "") << what;
  }

  void check_hopper() {
    const LayerSpec& spec = GetParam();
    std::string problems;
    base_ = layer_case_->run({.keys = keys_in_order(spec.tokens)}, &problems);
    EXPECT_EQ(problems, "");
    const std::vector<int64_t> keys = chosen_tokens(spec);
    if (keys.empty()) return;
    EXPECT_EQ(bit_differences(gather(base_, keys, spec.hidden), layer_case_->expected(keys), spec.hidden), "")
        << "beside hopper; rows are tokens " << ::testing::PrintToString(keys);
  }

  // Two tiles for each product, others from case to case, so that the list of cases meets all of them.
  void check_tiles() {
    const LayerSpec& spec = GetParam();
    const auto configs = static_cast<uint64_t>(layer_case_->table().w4a8_configs().size());
    for (uint64_t i = 0; i < 2; ++i) {
      Call call{.keys = keys_in_order(spec.tokens)};
      call.options.gemm1_config = static_cast<int32_t>((spec.seed + i) % configs);
      call.options.gemm2_config = static_cast<int32_t>((spec.seed / 2 + 2 * i + 1) % configs);
      call.workspace_byte = i == 0 ? 0x00 : 0x7f;
      expect_same("tile configurations", call);
    }
  }

  void check_batches() {
    const LayerSpec& spec = GetParam();
    Call permuted{.keys = shuffled(spec.tokens, spec.seed)};
    permuted.max_tokens = spec.tokens + 13;
    expect_same("permuted batch", permuted);
    if (spec.tokens == 0) return;
    expect_same("first token alone", {.keys = {0}});
    expect_same("a token alone",
                {.keys = {static_cast<int64_t>(hash(spec.seed, 801) % static_cast<uint64_t>(spec.tokens))}});
  }

  void check_forms() {
    const LayerSpec& spec = GetParam();
    const std::vector<int64_t> keys = keys_in_order(spec.tokens);
    if (spec.tokens > 0) expect_same("graph", {.keys = keys, .graph_replays = 2});
    if (spec.input != RouteInput::kIds) expect_same("ids and weights", {.keys = keys, .as_ids = true});
    if (spec.input == RouteInput::kIds) expect_same("junk for -1", {.keys = keys, .junk_ids = true});
    if (spec.shared != Shared::kNone) expect_same("one stream", {.keys = keys, .side_stream = false});
  }

  std::optional<LayerCase> layer_case_;
  std::vector<uint16_t> base_;
};

TEST_P(Conformance, EqualsHopper) {
  check_hopper();
  if (HasFailure()) return;  // the rest would say the same again
  check_tiles();
  check_batches();
  check_forms();
}

std::string case_name(const ::testing::TestParamInfo<LayerSpec>& info) {
  return info.param.name();
}
INSTANTIATE_TEST_SUITE_P(Covering, Conformance, ::testing::ValuesIn(covering_cases()), case_name);
INSTANTIATE_TEST_SUITE_P(Shapes, Conformance, ::testing::ValuesIn(shape_cases()), case_name);
INSTANTIATE_TEST_SUITE_P(Field, Conformance, ::testing::ValuesIn(field_cases()), case_name);
INSTANTIATE_TEST_SUITE_P(Nonfinite, Conformance, ::testing::ValuesIn(nonfinite_cases()), case_name);
INSTANTIATE_TEST_SUITE_P(Sanitize, Conformance, ::testing::ValuesIn(sanitize_cases()), case_name);

}  // namespace
}  // namespace quadrille::testing

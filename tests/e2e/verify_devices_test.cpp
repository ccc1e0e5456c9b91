// SPDX-License-Identifier: Apache-2.0
// When `verify --against` calls two texts that part explained: over models whose logits are made up.
#include "cli/verify_devices.h"

#include <gtest/gtest.h>

namespace quadrille::cli {
namespace {

constexpr int64_t kVocabulary = 4;

// Logits of each position, whatever the tokens are.
class MadeUp final : public model::Forward {
 public:
  explicit MadeUp(std::vector<std::vector<float>> rows) : rows_(std::move(rows)) {}
  int64_t vocab_size() const override { return kVocabulary; }
  int64_t max_positions() const override { return 64; }
  int64_t num_pages() const override { return 1; }
  Status run(const model::Step& step, std::span<float> logits) override {
    for (size_t r = 0; r < step.logit_rows.size(); ++r) {
      const std::vector<float>& row =
          rows_[static_cast<size_t>(step.positions[static_cast<size_t>(step.logit_rows[r])])];
      std::copy(row.begin(), row.end(), logits.begin() + static_cast<std::ptrdiff_t>(r * kVocabulary));
    }
    return {};
  }

 private:
  std::vector<std::vector<float>> rows_;
};

// A prompt of two tokens; the answers are equal in one and part in the next.
DeviceDifference part(std::vector<float> before, std::vector<float> here, int32_t token, int32_t other) {
  engine::Request request;
  request.prompt = {0, 1};
  MadeUp first({{0, 0, 0, 0}, {1, 2, 3, 4}, {0, 5, 4.75f, 0}});
  MadeUp second({{0, 0, 0, 0}, std::move(before), std::move(here)});
  auto found = explain_devices(first, second, request, {3, token}, {3, other});
  EXPECT_TRUE(found.ok());
  return *found;
}

TEST(VerifyDevices, NearLogitsExplainADifference) {
  const DeviceDifference d = part({1, 2, 3, 4.5f}, {0, 4.875f, 5, 0}, 1, 2);
  EXPECT_EQ(d.step, 1);
  EXPECT_EQ(d.token[0], 1);
  EXPECT_EQ(d.token[1], 2);
  EXPECT_EQ(d.margin[0], 0.25);
  EXPECT_EQ(d.margin[1], 0.125);
  EXPECT_EQ(d.top_margin[0], 0.25);
  EXPECT_EQ(d.top_margin[1], 0.125);
  EXPECT_EQ(d.difference, 0.25);
  EXPECT_EQ(d.difference_before, 0.5);
  EXPECT_TRUE(d.is_explained());
}

TEST(VerifyDevices, FarLogitsDoNot) {
  // The margins, 0.25 and 2, are more than logits moved before.
  EXPECT_FALSE(part({1, 2, 3, 4.5f}, {0, 4, 6, 0}, 1, 2).is_explained());
  // Nothing moved before at all.
  EXPECT_FALSE(part({1, 2, 3, 4}, {0, 4.875f, 5, 0}, 1, 2).is_explained());
}

TEST(VerifyDevices, ADeviceThatChoosesOtherwiseWhenAskedAgainIsAFault) {
  const DeviceDifference d = part({1, 2, 3, 4.5f}, {0, 5, 4.875f, 0}, 1, 2);
  EXPECT_TRUE(d.chooses_again[0]);
  EXPECT_FALSE(d.chooses_again[1]);
  EXPECT_FALSE(d.is_explained());
}

TEST(VerifyDevices, EqualLogitsGoToTheSmallerToken) {
  EXPECT_TRUE(part({1, 2, 3, 4.5f}, {0, 5, 5, 0}, 2, 1).chooses_again[1]);
  EXPECT_FALSE(part({1, 2, 3, 4.5f}, {0, 5, 5, 0}, 1, 2).chooses_again[1]);
}

}  // namespace
}  // namespace quadrille::cli

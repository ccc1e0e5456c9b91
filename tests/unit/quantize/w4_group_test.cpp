// SPDX-License-Identifier: Apache-2.0
// Both roundings against the bytes that the compressed-tensors library wrote.
#include "quantize/w4_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "formats/safetensors.h"
#include "numerics/bf16.h"
#include "support/golden.h"

namespace quadrille::quantize {
namespace {

using formats::DType;
using formats::SafetensorsFile;
using formats::TensorView;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

template <typename T>
std::vector<T> values(const TensorView* view) {
  std::vector<T> result(view->bytes.size() / sizeof(T));
  EXPECT_TRUE(view->copy_to(std::as_writable_bytes(std::span(result))));
  return result;
}

struct Case {
  const char* name;
  int64_t group_size;
};
constexpr Case kCases[] = {{"a_g128", 128},        {"b_g64", 64},         {"c_g32", 32},
                           {"d_channel", 0},       {"e_stack_g128", 128}, {"f_stack_g32", 32},
                           {"g_stack_channel", 0}, {"h_tail_channel", 0}, {"i_subnormal_g32", 32}};

class LibraryBytes : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    auto file = SafetensorsFile::open(
        quadrille::testing::data_path(std::string("quantize/") + GetParam().name + ".safetensors"));
    ASSERT_TRUE(file) << file.error().message;
    file_ = std::make_unique<SafetensorsFile>(std::move(*file));
  }
  W4Tensor quantize(DType dtype, std::span<const std::byte> bytes, Quotient quotient) {
    auto result = quantize_tensor(bytes, dtype, file_->find("weight")->shape, GetParam().group_size, quotient);
    EXPECT_TRUE(result) << result.error().message;
    return result ? *result : W4Tensor{};
  }
  void expect_library(const W4Tensor& ours, const std::string& suffix) {
    EXPECT_EQ(ours.scales, values<uint16_t>(file_->find("weight_scale")));
    EXPECT_EQ(ours.codes, values<int8_t>(file_->find("codes" + suffix)));
    EXPECT_EQ(ours.packed, values<int32_t>(file_->find("weight_packed" + suffix)));
  }
  std::unique_ptr<SafetensorsFile> file_;
};

TEST_P(LibraryBytes, QuotientRoundedToBf16) {
  expect_library(quantize(DType::kBF16, file_->find("weight")->bytes, Quotient::kBf16), "");
}

TEST_P(LibraryBytes, QuotientInF32) {
  expect_library(quantize(DType::kBF16, file_->find("weight")->bytes, Quotient::kF32), "_f32_quotient");
}

TEST_P(LibraryBytes, F32WithTheSameValuesIsTheSame) {
  const std::vector<uint16_t> bf16 = values<uint16_t>(file_->find("weight"));
  std::vector<float> wide;
  for (const uint16_t code : bf16) wide.push_back(numerics::bf16_to_f32(code));
  expect_library(quantize(DType::kF32, std::as_bytes(std::span(wide)), Quotient::kBf16), "");
}

TEST_P(LibraryBytes, UnalignedInputIsTheSame) {
  const auto bytes = file_->find("weight")->bytes;
  std::vector<std::byte> shifted(bytes.size() + 1);
  std::memcpy(shifted.data() + 1, bytes.data(), bytes.size());
  expect_library(quantize(DType::kBF16, std::span(shifted).subspan(1), Quotient::kF32), "_f32_quotient");
}

TEST_P(LibraryBytes, UnpackingIsTheInverse) {
  const std::vector<int8_t> codes = values<int8_t>(file_->find("codes"));
  const std::vector<int32_t> packed = values<int32_t>(file_->find("weight_packed"));
  const int64_t k = file_->find("weight")->shape.back();
  const auto rows = static_cast<int64_t>(codes.size()) / k;
  std::vector<int8_t> row(static_cast<size_t>(k));
  for (int64_t r = 0; r < rows; ++r) {
    unpack_row(packed.data() + r * words_per_row(k), row);
    EXPECT_TRUE(std::equal(row.begin(), row.end(), codes.begin() + r * k)) << r;
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, LibraryBytes, ::testing::ValuesIn(kCases),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(PackRow, GivesTheWordsOfTheReference) {
  int32_t words[2] = {};
  std::vector<int8_t> codes;
  for (int q = -8; q <= 7; ++q) codes.push_back(static_cast<int8_t>(q));
  pack_row(codes, words);
  EXPECT_EQ(words[0], 1985229328);
  EXPECT_EQ(words[1], -19088744);
  const int8_t mixed[] = {0, 1, -1, 7, -8, 3, -4, 2};
  pack_row(mixed, words);
  EXPECT_EQ(static_cast<uint32_t>(words[0]), 0xA4B0F798u);
  // The nibbles behind K are 0.
  const int8_t tail[] = {-8, 7, 0};
  pack_row(tail, words);
  EXPECT_EQ(static_cast<uint32_t>(words[0]), 0x8F0u);
}

// Every bf16 value above and below: the fast loops against the definition with the C library's rounding.
TEST(QuantizeRow, FollowsTheDefinitionForEveryBf16Value) {
  for (const float largest : {7.5f, 1.0f, 0.0123f, 3.0e-39f, 2.5e38f}) {
    for (const Quotient quotient : {Quotient::kF32, Quotient::kBf16}) {
      for (uint32_t first = 0; first < 65'536; first += 31) {
        std::vector<float> x = {largest};
        for (uint32_t code = first; x.size() < 32; ++code) {
          const float value = numerics::bf16_to_f32(static_cast<uint16_t>(code));
          x.push_back(std::fabs(value) <= largest ? value : largest / 3);
        }
        int8_t codes[32];
        uint16_t scale = 0;
        quantize_row(x, 32, quotient, codes, &scale);
        uint16_t expected_scale = numerics::bf16_from_f32(largest / 7.5f);
        if (expected_scale == 0) expected_scale = 0x3c00;
        ASSERT_EQ(scale, expected_scale);
        for (size_t i = 0; i < x.size(); ++i) {
          float q = x[i] / numerics::bf16_to_f32(scale);
          if (quotient == Quotient::kBf16) q = numerics::round_to_bf16(q);
          q = std::fmin(std::fmax(q, -8.0f), 7.0f);
          ASSERT_EQ(codes[i], static_cast<int8_t>(std::nearbyint(q))) << x[i] << " of " << largest;
        }
      }
    }
  }
}

TEST(QuantizeRow, F16ValuesAreWidenedExactly) {
  // 1, -2, the smallest subnormal 2^-24, 65504.
  const uint16_t codes[] = {0x3c00, 0xc000, 0x0001, 0x7bff};
  float wide[4];
  widen_row(reinterpret_cast<const std::byte*>(codes), DType::kF16, 4, wide);
  EXPECT_THAT(wide, ElementsAre(1.0f, -2.0f, std::ldexp(1.0f, -24), 65504.0f));
}

TEST(QuantizeTensor, RefusesWhatHasNoMeaning) {
  const std::vector<float> x(64, 1.0f);
  const auto bytes = std::as_bytes(std::span(x));
  const auto error_of = [&](DType dtype, std::vector<int64_t> shape, int64_t group) {
    const auto result = quantize_tensor(bytes, dtype, shape, group, Quotient::kF32);
    return result ? "no error" : result.error().message;
  };
  EXPECT_EQ(error_of(DType::kF32, {2, 32}, 32), "no error");
  EXPECT_THAT(error_of(DType::kF32, {64}, 32), HasSubstr("[64]"));
  EXPECT_THAT(error_of(DType::kF32, {1, 1, 2, 32}, 32), HasSubstr("stack"));
  EXPECT_THAT(error_of(DType::kI32, {2, 32}, 32), HasSubstr("I32"));
  EXPECT_THAT(error_of(DType::kF32, {2, 32}, 64), HasSubstr("does not divide K = 32; legal here: 32, channel"));
  EXPECT_THAT(error_of(DType::kF32, {2, 32}, 16), HasSubstr("expected 32, 64, 128 or channel"));
  EXPECT_THAT(error_of(DType::kF32, {3, 32}, 32), HasSubstr("expected 384 bytes"));
}

TEST(QuantizeTensor, NamesAnElementThatIsNotFinite) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    std::vector<float> x(64, 1.0f);
    x[32 + 5] = bad;
    const auto result =
        quantize_tensor(std::as_bytes(std::span(x)), DType::kF32, std::vector<int64_t>{2, 32}, 32, Quotient::kF32);
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidData);
    EXPECT_THAT(result.error().message, HasSubstr("element [1, 5]"));
  }
}

TEST(LegalGroupSizes, ListsTheDivisors) {
  EXPECT_EQ(legal_group_sizes(192), "32, 64, channel");
  EXPECT_EQ(legal_group_sizes(200), "channel");
  EXPECT_TRUE(check_group_size(200, 0));
  EXPECT_TRUE(check_group_size(256, 128));
  EXPECT_FALSE(check_group_size(192, 128));
}

}  // namespace
}  // namespace quadrille::quantize

// SPDX-License-Identifier: Apache-2.0
// The public surface: what it refuses and with which words, called from C and through the C++ owners; on a GPU also
// that it computes.
#include <gmock/gmock.h>

#include <cstring>
#include <limits>

#include "quadrille/moe.h"
#include "unit/api/c_calls.h"

namespace {

namespace gpu = quadrille::gpu;
using ::testing::HasSubstr;

TEST(Api, NamesItsReleaseAndItsCodes) {
  EXPECT_THAT(qd_version(), ::testing::MatchesRegex("[0-9]+[.][0-9]+[.][0-9]+"));
  EXPECT_STREQ(qd_result_name(QD_OK), "ok");
  EXPECT_STREQ(qd_result_name(QD_UNSUPPORTED), "unsupported");
  EXPECT_STREQ(qd_result_name(static_cast<qd_result>(55)), "unknown");
}

TEST(Api, WithoutGpuEveryCallSaysWhy) {
  qd_error error;
  const qd_result here = qd_device_available(0, &error);
  if (here == QD_OK) GTEST_SKIP() << "a GPU is here";
  EXPECT_EQ(error.code, here);
  EXPECT_EQ(here, QD_UNSUPPORTED) << error.message;
  EXPECT_GT(std::strlen(error.message), 20u);
  EXPECT_EQ(qd_device_available(0, nullptr), here) << "the message is optional";
  int32_t count = 7;
  EXPECT_NE(qd_device_count(&count, &error), QD_OK);
  EXPECT_EQ(count, 0);
  EXPECT_NE(qd_device_current(&count, &error), QD_OK);
  EXPECT_NE(qd_stream_follow(nullptr, &count, &error), QD_OK);
  void* handle = &count;
  EXPECT_NE(qd_stream_create(&handle, &error), QD_OK);
  EXPECT_EQ(handle, nullptr);
  EXPECT_FALSE(gpu::Stream::create());
  EXPECT_FALSE(gpu::Event::create());
  EXPECT_FALSE(gpu::Memory::allocate(16, &count));
  qd_device_info info;
  qd_device_info_init(&info);
  EXPECT_NE(qd_device_get_info(0, &info, &error), QD_OK);
  qd_weights_desc desc;
  c_weights_desc(&desc);
  qd_weights* weights = nullptr;
  EXPECT_NE(c_prepare(&desc, &weights, &error), QD_OK);
  EXPECT_GT(std::strlen(error.message), 20u);
  EXPECT_EQ(weights, nullptr);
  qd_weights_destroy(nullptr, nullptr);
  qd_layer_destroy(nullptr);
  qd_memory_release(nullptr, nullptr);
  qd_stream_destroy(nullptr);
  qd_event_destroy(nullptr);
}

class Descriptions : public ::testing::Test {
 protected:
  Descriptions() { c_weights_desc(&desc); }
  // The description, spoilt, is refused without a device being asked.
  template <typename Spoil>
  void expect_refused(Spoil&& spoil, qd_result code, const std::string& text) {
    qd_weights_desc other = desc;
    spoil(other);
    qd_error error;
    size_t bytes = 0;
    EXPECT_EQ(qd_weights_bytes(&other, &bytes, nullptr, &error), code) << text << ": " << error.message;
    EXPECT_THAT(error.message, HasSubstr(text));
    qd_weights* weights = nullptr;
    EXPECT_EQ(c_prepare(&other, &weights, &error), code) << text;
    EXPECT_EQ(weights, nullptr);
  }
  qd_weights_desc desc;
};

TEST_F(Descriptions, SizesNeedNoDevice) {
  size_t bytes = 0, staging = 0;
  qd_error error;
  ASSERT_EQ(qd_weights_bytes(&desc, &bytes, &staging, &error), QD_OK) << error.message;
  EXPECT_GE(bytes, 64u * 256 / 2 + 64 * 2 * 2) << "codes and scales";
  EXPECT_GE(staging, 2u * (64 * 256 / 2 + 64 * 2 * 2)) << "two experts";
}

TEST_F(Descriptions, WhatIsNotSupportedIsTyped) {
  expect_refused([](auto& d) { d.struct_size = 8; }, QD_INVALID_ARGUMENT, "struct_size");
  expect_refused([](auto& d) { d.source = 3; }, QD_UNSUPPORTED, "source 3: legal are");
  expect_refused([](auto& d) { d.numerics = 2; }, QD_UNSUPPORTED, "numerics 2: legal are");
  expect_refused([](auto& d) { d.group_size = 16; }, QD_UNSUPPORTED, "16");
  expect_refused([](auto& d) { d.part_n = 60; }, QD_UNSUPPORTED, "60");
  expect_refused([](auto& d) { d.k = 12; }, QD_UNSUPPORTED, "12");
  expect_refused([](auto& d) { d.num_experts = 0; }, QD_INVALID_ARGUMENT, "at least 1, found 0");
  expect_refused([](auto& d) { d.num_parts = 3; }, QD_INVALID_ARGUMENT, "found 3");
  expect_refused([](auto& d) { d.codes = nullptr; }, QD_INVALID_ARGUMENT, "codes: a null pointer");
  expect_refused([](auto& d) { d.scales = nullptr; }, QD_INVALID_ARGUMENT, "scales: a null pointer");
}

TEST_F(Descriptions, NullsAndDefaultStreamsAreRefused) {
  qd_error error;
  qd_weights* weights = nullptr;
  EXPECT_EQ(qd_weights_bytes(nullptr, nullptr, nullptr, &error), QD_INVALID_ARGUMENT);
  EXPECT_EQ(qd_weights_prepare(&desc, nullptr, nullptr, nullptr, &weights, &error), QD_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("default stream"));
  int own = 0;
  EXPECT_EQ(qd_weights_prepare(&desc, nullptr, &own, nullptr, &weights, &error), QD_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("copy_stream"));
  EXPECT_EQ(qd_weights_prepare(&desc, nullptr, &own, &own, nullptr, &error), QD_INVALID_ARGUMENT);
  EXPECT_EQ(qd_weights_wait(nullptr, &own, &error), QD_INVALID_ARGUMENT);
  EXPECT_EQ(qd_layer_can_run(nullptr, 1, &error), QD_INVALID_ARGUMENT);
  EXPECT_EQ(qd_linear_run(nullptr, nullptr, 1, nullptr, nullptr, 0, &own, &error), QD_INVALID_ARGUMENT);
  qd_layer_desc layer_desc;
  qd_layer_desc_init(&layer_desc);
  qd_layer* layer = nullptr;
  EXPECT_EQ(qd_layer_create(&layer_desc, &layer, &error), QD_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("experts: gate_up: a null pointer"));
  layer_desc.scoring = 9;
  EXPECT_EQ(qd_layer_create(&layer_desc, &layer, &error), QD_UNSUPPORTED);
  EXPECT_THAT(error.message, HasSubstr("scoring 9: legal are"));
  EXPECT_EQ(layer, nullptr);
}

TEST(Api, OwnersRefuseRaggedSources) {
  gpu::WeightsSource source;
  source.num_parts = 2;
  int anything = 0;
  source.add(&anything, &anything);
  const auto desc = source.desc();
  ASSERT_FALSE(desc);
  EXPECT_EQ(desc.error().code, QD_INVALID_ARGUMENT);
}

TEST(Api, LinearOfOnesFromC) {
  if (const auto here = gpu::available(); !here) GTEST_SKIP() << here.error().message;
  qd_error error{};
  EXPECT_EQ(c_linear_of_ones(&error), 0) << error.message;
}

}  // namespace

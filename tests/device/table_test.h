// SPDX-License-Identifier: Apache-2.0
// The fixture of tests that call functions of the device table: skips where there is no GPU, else has a stream of its
// own and the table.
#pragma once

#include <gtest/gtest.h>

#include <optional>

#include "device/device.h"
#include "device/must.h"
#include "kernels/api/device_table.h"

namespace quadrille::testing {

class TableTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
    owned_.emplace(must(device::OwnedStream::create()));
    table_ = must(kernels::device_table());
  }
  device::Stream stream() const { return owned_->get(); }

  const kernels::DeviceTable* table_ = nullptr;
  std::optional<device::OwnedStream> owned_;
};

}  // namespace quadrille::testing

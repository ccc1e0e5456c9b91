// SPDX-License-Identifier: Apache-2.0
// A device layer over addresses that nobody reads, for tests of checks, plans and order.
#pragma once

#include <gtest/gtest.h>

#include "layout/w4_hopper64.h"
#include "moe/device_layer.h"
#include "unit/moe/recording_table.h"

namespace quadrille::testing {

// An address of made-up device memory; 1 GiB each.
inline uint8_t* far_memory(int place) {
  return reinterpret_cast<uint8_t*>((uintptr_t{1} << 40) + (static_cast<uintptr_t>(place) << 30));
}
template <typename T>
T* far(int place) {
  return reinterpret_cast<T*>(far_memory(place));
}

class DeviceLayerTest : public ::testing::Test {
 protected:
  DeviceLayerTest() : table(recording_table()) {
    recording = &record;
    layer.rule.num_experts = 8;
    layer.rule.top_k = 2;
    layer.experts = make_mlp(8, 256, 128, 10);
    batch.num_tokens = 33;
    batch.x = far<uint16_t>(1);
    batch.topk_ids = far<int32_t>(2);
    batch.topk_weights = far<float>(3);
    batch.out = far<uint16_t>(4);
    streams.main = {far_memory(5)};
  }
  ~DeviceLayerTest() override { recording = nullptr; }

  static moe::DeviceLinear make_linear(int64_t experts, int64_t n, int64_t k, int place) {
    moe::DeviceLinear linear;
    linear.num_experts = experts;
    linear.n = n;
    linear.k = k;
    linear.group_size = 128;
    linear.weights = far<uint8_t>(place);
    linear.expert_stride = layout::W4Hopper64{n, k, 128, false}.num_bytes();
    return linear;
  }
  static moe::DeviceMlp make_mlp(int64_t experts, int64_t hidden, int64_t width, int place) {
    moe::DeviceMlp mlp;
    mlp.hidden = hidden;
    mlp.width = width;
    mlp.gate_up = make_linear(experts, 2 * width, hidden, place);
    mlp.down = make_linear(experts, hidden, width, place + 1);
    return mlp;
  }

  Status run() {
    const size_t bytes = moe::workspace_bytes(layer, batch.num_tokens, options);
    workspace = span_of(far_memory(20), static_cast<int64_t>(bytes));
    return moe::run_device_layer(table, layer, batch, far_memory(20), bytes, streams, far<uint32_t>(6), options);
  }

  // Every span of the calls that lies near the workspace lies inside of it, and no call reads what it writes.
  void expect_in_bounds() const {
    for (const RecordedCall& call : record.calls) {
      for (const auto* spans : {&call.reads, &call.writes}) {
        for (const Span& span : *spans) {
          if (span.begin < workspace.begin || span.begin >= workspace.begin + (uintptr_t{1} << 30)) continue;
          EXPECT_LE(span.end, workspace.end) << call.name;
          EXPECT_EQ(span.begin % 256, 0u) << call.name;
        }
      }
      for (const Span& read : call.reads) {
        const bool in_place = call.name.starts_with("all_reduce");
        for (const Span& write : call.writes) EXPECT_TRUE(in_place || !read.meets(write)) << call.name;
      }
    }
  }
  // What a call reads from the workspace was written before, and by nobody else since: each read finds as its last
  // writer a call that wrote exactly that part's beginning, or all of it.
  void expect_reads_find_their_writers() const {
    for (size_t i = 0; i < record.calls.size(); ++i) {
      for (const Span& read : record.calls[i].reads) {
        if (!read.meets(workspace)) continue;
        bool found = false;
        for (size_t j = i; j-- > 0 && !found;) {
          for (const Span& write : record.calls[j].writes) {
            if (!write.meets(read)) continue;
            EXPECT_TRUE(write.begin == read.begin || (write.begin < read.begin && read.end <= write.end))
                << record.calls[i].name << " reads what " << record.calls[j].name << " wrote over";
            found = true;
          }
        }
        EXPECT_TRUE(found) << record.calls[i].name << " reads what nobody wrote";
      }
    }
  }
  std::set<void*> streams_of(const std::string& name) const {
    std::set<void*> out;
    for (const RecordedCall& call : record.calls) {
      if (call.name == name) out.insert(call.stream);
    }
    return out;
  }

  Recording record;
  kernels::DeviceTable table;
  moe::DeviceMoeLayer layer;
  moe::DeviceBatch batch;
  moe::DeviceStreams streams;
  moe::DeviceLayerOptions options;
  Span workspace;
};

}  // namespace quadrille::testing

// SPDX-License-Identifier: Apache-2.0
// A W4A8 MoE layer: prepares random weights in checkpoint layout on a stream, runs the layer, prints a few outputs.
#include <quadrille/moe.h>

#include <cstdio>
#include <cstdlib>
#include <random>

namespace gpu = quadrille::gpu;
constexpr int64_t kExperts = 8, kHidden = 2048, kWidth = 768, kGroup = 128, kTokens = 16, kTopK = 2;

void must(const gpu::Status& status) {
  if (status) return;
  std::printf("%s: %s\n", qd_result_name(status.error().code), status.error().message.c_str());
  std::exit(1);
}
template <typename T>
T must(gpu::Result<T> result) {
  if (!result) must(gpu::Status(result.error()));
  return std::move(*result);
}

// Codes [experts, n, k/8] and scales [experts, n, k/group] on the host; gate and up are two parts of one matrix.
gpu::Weights random_weights(int64_t n, int64_t k, int parts, std::mt19937& random, const gpu::Stream& stream,
                            const gpu::Stream& copies) {
  std::vector<uint32_t> codes(kExperts * n * k / 8);
  std::vector<uint16_t> scales(kExperts * n * k / kGroup);
  for (auto& word : codes) word = random();
  for (auto& scale : scales) scale = 0x3c00 + random() % 128;  // bf16, 2^-7 to 2^-6
  gpu::WeightsSource source;
  source.num_parts = parts;
  source.part_n = n / parts;
  source.k = k;
  source.group_size = kGroup;
  source.on_host = true;
  for (int64_t i = 0; i < kExperts * parts; ++i) {
    source.add(&codes[i * source.part_n * k / 8], &scales[i * source.part_n * k / kGroup]);
  }
  gpu::Weights weights = must(gpu::Weights::prepare(source, stream.get(), copies.get()));
  must(weights.synchronize(stream.get()));  // codes and scales end here
  return weights;
}

int main() {
  if (auto here = gpu::available(); !here) {
    std::printf("skipped: %s\n", here.error().message.c_str());
    return 77;
  }
  const auto stream = must(gpu::Stream::create()), copies = must(gpu::Stream::create());
  std::mt19937 random(1);
  const auto gate_up = random_weights(2 * kWidth, kHidden, 2, random, stream, copies);
  const auto down = random_weights(kHidden, kWidth, 1, random, stream, copies);
  gpu::LayerDesc desc;
  desc.num_experts = kExperts;
  desc.top_k = kTopK;
  desc.renormalise = 1;
  desc.experts.gate_up = gate_up.get();
  desc.experts.down = down.get();
  const auto layer = must(gpu::Layer::create(desc));

  std::vector<uint16_t> x(kTokens * kHidden), out(x.size());
  std::vector<float> logits(kTokens * kExperts);
  for (auto& value : x) value = 0x3f00 + random() % 128 + (random() % 2 << 15);  // bf16, +-0.5 to 1
  for (auto& logit : logits) logit = static_cast<float>(random() % 1000) / 250;
  const auto x_there = must(gpu::Memory::copy_of(x, stream.get()));
  const auto logits_there = must(gpu::Memory::copy_of(logits, stream.get()));
  const auto out_there = must(gpu::Memory::allocate(2 * out.size(), stream.get()));
  const auto workspace = must(gpu::Memory::allocate(must(layer.workspace_bytes(kTokens)), stream.get()));
  gpu::Batch batch;
  batch.num_tokens = kTokens;
  batch.x = x_there.get();
  batch.router_logits = logits_there.as<float>();
  batch.out = out_there.get();
  must(layer.run(batch, workspace, gpu::Streams(stream.get())));
  must(out_there.copy_to(out, stream.get()));
  must(stream.synchronize());
  for (int i = 0; i < 8; ++i) std::printf("out[0][%d] = bf16 0x%04x\n", i, out[i]);
}

// SPDX-License-Identifier: Apache-2.0
// The public surface on a GPU: a layer and a linear layer through quadrille/moe.h, weights from host memory and from
// the caller's allocator, against the CPU table `hopper`, bit for bit.
#include <gtest/gtest.h>

#include "device/compare_bits.h"
#include "device/hopper_layer.h"
#include "device/random_data.h"
#include "numerics/bf16.h"
#include "quadrille/moe.h"

namespace quadrille::testing {
namespace {

void must_call(const gpu::Status& status) {
  if (!status) throw std::runtime_error(status.error().message);
}
template <typename T>
T must_call(gpu::Result<T> result) {
  if (!result) throw std::runtime_error(result.error().message);
  return std::move(*result);
}

// A stack's checkpoint form on the host.
struct HostStack {
  std::vector<std::vector<uint32_t>> codes;
  std::vector<std::vector<uint16_t>> scales;
  std::vector<std::vector<float>> bias;
  gpu::WeightsSource source;

  explicit HostStack(const StackSpec& spec) {
    source.numerics = static_cast<int32_t>(spec.numerics);
    source.num_parts = spec.num_parts;
    source.part_n = spec.part_n;
    source.k = spec.k;
    source.group_size = spec.group;
    source.on_host = true;
    for (int64_t e = 0; e < spec.experts; ++e) {
      for (int part = 0; part < spec.num_parts; ++part) add(spec, e, part);
    }
    for (size_t i = 0; i < codes.size(); ++i) {
      source.add(codes[i].data(), scales[i].data(), spec.bias ? bias[i].data() : nullptr);
    }
  }
  void add(const StackSpec& spec, int64_t expert, int part) {
    const auto seed = [&](Part p) { return matrix_seed(spec.seed, spec.first_expert + expert, spec.matrix + part, p); };
    auto& words = codes.emplace_back(static_cast<size_t>(spec.part_n * spec.k / 8));
    auto& numbers = scales.emplace_back(static_cast<size_t>(spec.part_n * spec.groups()));
    auto& added = bias.emplace_back(static_cast<size_t>(spec.part_n));
    for (size_t i = 0; i < words.size(); ++i) words[i] = code_word(seed(Part::kCodes), static_cast<int64_t>(i));
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = scale_bits(seed(Part::kScales), static_cast<int64_t>(i));
    for (size_t i = 0; i < added.size(); ++i) added[i] = small_number(seed(Part::kBias), static_cast<int64_t>(i));
  }
};

// The pool behind the caller's allocator, counted.
struct Counted {
  int taken = 0, released = 0;
  qd_allocator allocator() {
    return {this,
            [](void* context, size_t bytes, void* stream) -> void* {
              void* memory = nullptr;
              ++static_cast<Counted*>(context)->taken;
              return qd_memory_allocate(bytes, stream, &memory, nullptr) == QD_OK ? memory : nullptr;
            },
            [](void* context, void* memory, size_t, void* stream) {
              ++static_cast<Counted*>(context)->released;
              qd_memory_release(memory, stream);
            }};
  }
};

// A layer of the public surface made of a case's numbers.
class LibraryLayer {
 public:
  LibraryLayer(const LayerSpec& spec, const LayerRoutes& routes, Counted* counted)
      : spec_(spec),
        stacks_{HostStack(gate_up_stack(spec, false)), HostStack(down_stack(spec, false)),
                HostStack(gate_up_stack(spec, true)), HostStack(down_stack(spec, true))} {
    const qd_allocator allocator = counted->allocator();
    for (const HostStack& stack : stacks_) {
      weights_.push_back(must_call(gpu::Weights::prepare(stack.source, prepare_.get(), copies_.get(), &allocator)));
    }
    const moe::RouterRule rule = spec.rule();
    gpu::LayerDesc desc;
    desc.scoring = static_cast<int32_t>(rule.scoring);
    desc.num_experts = rule.num_experts;
    desc.top_k = rule.top_k;
    desc.renormalise = rule.renormalise ? 1 : 0;
    desc.renorm_epsilon = rule.renorm_epsilon;
    desc.routed_scaling = rule.routed_scaling;
    desc.num_groups = rule.num_groups;
    desc.groups_kept = rule.groups_kept;
    if (!routes.correction_bias.empty()) {
      correction_bias_ = upload(routes.correction_bias);
      desc.correction_bias = correction_bias_.as<float>();
    }
    set_mlp(&desc.experts, 0);
    set_mlp(&desc.shared, 2);
    std::vector<uint16_t> gate(static_cast<size_t>(spec.hidden));
    for (size_t i = 0; i < gate.size(); ++i) gate[i] = small_weight_bits(hash(spec.seed, 15), static_cast<int64_t>(i));
    gate_ = upload(gate);
    desc.shared_gate_weight = gate_.get();
    layer_.emplace(must_call(gpu::Layer::create(desc)));
  }
  ~LibraryLayer() {
    for (gpu::Weights& weights : weights_) weights.release_on(main_.get());
    (void)static_cast<bool>(main_.synchronize());
  }

  std::vector<uint16_t> run(const std::vector<float>& logits) {
    std::vector<uint16_t> x(static_cast<size_t>(spec_.tokens * spec_.hidden));
    for (size_t i = 0; i < x.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      x[i] = activation_bits(spec_.seed, at / spec_.hidden, at % spec_.hidden, spec_.hidden, false);
    }
    const auto x_there = upload(x), out_there = upload(std::vector<uint16_t>(x.size(), 0xffff));
    const auto logits_there = upload(logits);
    const auto flags = upload(std::vector<uint32_t>{0});
    const size_t bytes = must_call(layer_->workspace_bytes(spec_.tokens));
    const auto workspace = must_call(gpu::Memory::allocate(bytes, main_.get()));
    const auto begins = must_call(gpu::Event::create()), ends = must_call(gpu::Event::create());
    gpu::Batch batch;
    batch.num_tokens = spec_.tokens;
    batch.x = x_there.get();
    batch.router_logits = logits_there.as<float>();
    batch.out = out_there.get();
    gpu::Streams streams(main_.get());
    streams.side = side_.get();
    streams.shared_begins = begins.get();
    streams.shared_ends = ends.get();
    must_call(layer_->run(batch, workspace, streams, flags.as<uint32_t>()));
    std::vector<uint32_t> found(1, 77);
    must_call(out_there.copy_to(x, main_.get()));
    must_call(flags.copy_to(found, main_.get()));
    must_call(main_.synchronize());
    EXPECT_EQ(found[0], 0u);
    return x;
  }
  uint32_t preparation_flags() {
    uint32_t all = 0;
    for (const gpu::Weights& weights : weights_) all |= must_call(weights.synchronize(main_.get()));
    return all;
  }

 private:
  void set_mlp(qd_mlp* mlp, size_t first) const {
    const kernels::ActivationRule rule = spec_.activation_rule();
    *mlp = {weights_[first].get(), weights_[first + 1].get(), static_cast<int32_t>(rule.kind), rule.alpha, rule.limit,
            rule.up_offset};
  }
  template <typename T>
  gpu::Memory upload(const std::vector<T>& values) {
    auto memory = must_call(gpu::Memory::copy_of(values, main_.get()));
    must_call(main_.synchronize());
    return memory;
  }

  LayerSpec spec_;
  gpu::Stream main_ = must_call(gpu::Stream::create()), side_ = must_call(gpu::Stream::create());
  gpu::Stream prepare_ = must_call(gpu::Stream::create()), copies_ = must_call(gpu::Stream::create());
  HostStack stacks_[4];
  std::vector<gpu::Weights> weights_;
  gpu::Memory correction_bias_, gate_;
  std::optional<gpu::Layer> layer_;
};

LayerSpec library_spec(kernels::Numerics numerics) {
  LayerSpec spec;
  spec.tokens = 23;
  spec.hidden = 256;
  spec.width = 384;
  spec.experts = 8;
  spec.top_k = 2;
  spec.group = 64;
  spec.numerics = numerics;
  spec.bias = true;
  spec.shared = Shared::kGated;
  spec.input = RouteInput::kSigmoid;
  spec.seed = 5;
  return spec;
}

TEST(Library, LayerEqualsHopper) {
  if (auto ok = gpu::available(); !ok) GTEST_SKIP() << ok.error().message;
  ThreadPool pool;
  for (const auto numerics : {kernels::Numerics::kExact, kernels::Numerics::kVllm}) {
    const LayerSpec spec = library_spec(numerics);
    const LayerRoutes routes = make_routes(spec, &pool);
    Counted counted;
    {
      LibraryLayer layer(spec, routes, &counted);
      const auto found = layer.run(routes.logits);
      const auto expected = hopper_layer(spec, routes, keys_in_order(spec.tokens), &pool);
      EXPECT_EQ(bit_differences(found, expected, spec.hidden), "");
      EXPECT_EQ(layer.preparation_flags(), 0u);
    }
    EXPECT_GT(counted.taken, 8);
    EXPECT_EQ(counted.taken, counted.released) << "everything of the caller's allocator went back to it";
  }
}

TEST(Library, BadScaleIsSeen) {
  if (auto ok = gpu::available(); !ok) GTEST_SKIP() << ok.error().message;
  const auto stream = must_call(gpu::Stream::create()), copies = must_call(gpu::Stream::create());
  HostStack stack(down_stack(library_spec(kernels::Numerics::kExact), false));
  stack.scales[3][7] = 0x7fc0;
  const auto weights = must_call(gpu::Weights::prepare(stack.source, stream.get(), copies.get()));
  EXPECT_EQ(must_call(weights.synchronize(stream.get())), static_cast<uint32_t>(QD_FLAG_BAD_SCALE));
}

}  // namespace
}  // namespace quadrille::testing

// SPDX-License-Identifier: Apache-2.0
// An expert's blob gives the same bytes back, and whatever is changed in it is noticed before anything is made of it.
#include "moe/expert_blob.h"

#include <gtest/gtest.h>

#include <cstring>

#include "parallel/thread_group.h"
#include "unit/moe/cut_experts.h"

namespace quadrille::moe {
namespace {

struct Form {
  bool is_w4;
  Numerics numerics;
  int64_t group;
};
constexpr Form kForms[] = {{true, Numerics::kExact, 32},
                           {true, Numerics::kExact, 0},
                           {true, Numerics::kVllm, 64},
                           {false, Numerics::kExact, 0}};

// One expert, its references and what it is.
struct Packed {
  explicit Packed(const Form& form) {
    Experts experts(1, 64, form.group, form.numerics, form.is_w4, 7);
    stores = experts.prepared({0, 64});
    gate_up = ref(stores.gate_up, {});
    down = ref(stores.down, stores.down.bias[0]);
    kind.gate_up = {form.is_w4, form.numerics, stores.gate_up.n, stores.gate_up.k, form.is_w4 ? form.group : 0, false};
    kind.down = {form.is_w4, form.numerics, stores.down.n, stores.down.k, form.is_w4 ? form.group : 0, true};
    blob = pack_expert(name, gate_up, down);
  }
  static MatrixRef ref(const Store& store, std::span<const float> bias) {
    if (store.w4.empty()) return {nullptr, &store.bf16[0], bias};
    return {&store.w4[0], nullptr, bias};
  }

  ExpertName name{3, 11, 1, 2};
  Experts::Prepared stores;
  MatrixRef gate_up, down;
  ExpertKind kind;
  Blob blob;
};

std::vector<std::byte> bytes_of(const MatrixRef& matrix) {
  std::vector<std::byte> all;
  for (const auto part : parts_of(matrix)) all.insert(all.end(), part.begin(), part.end());
  return all;
}
std::vector<std::byte> bytes_of(const ExpertMatrix& matrix) {
  return bytes_of(MatrixRef{std::get_if<prepare::PreparedW4>(&matrix.weights),
                            std::get_if<prepare::PreparedBf16>(&matrix.weights), matrix.bias});
}

TEST(ExpertBlob, GivesTheSameExpertBack) {
  for (const Form& form : kForms) {
    const Packed p(form);
    const auto expert = unpack_expert(p.blob, p.name, p.kind);
    ASSERT_TRUE(expert) << expert.error().message;
    EXPECT_EQ(bytes_of(expert->gate_up), bytes_of(p.gate_up));
    EXPECT_EQ(bytes_of(expert->down), bytes_of(p.down));
    EXPECT_EQ(pack_expert(p.name,
                          {std::get_if<prepare::PreparedW4>(&expert->gate_up.weights),
                           std::get_if<prepare::PreparedBf16>(&expert->gate_up.weights),
                           {}},
                          {std::get_if<prepare::PreparedW4>(&expert->down.weights),
                           std::get_if<prepare::PreparedBf16>(&expert->down.weights), expert->down.bias}),
              p.blob);
  }
}

TEST(ExpertBlob, EveryChangedByteAndEveryCutIsNoticed) {
  for (const Form& form : {kForms[0], kForms[3]}) {
    const Packed p(form);
    for (size_t at = 0; at < p.blob.size(); at += at < 300 ? 1 : 37) {
      Blob damaged = p.blob;
      damaged[at] ^= std::byte{0x10};
      const auto expert = unpack_expert(damaged, p.name, p.kind);
      ASSERT_FALSE(expert) << "byte " << at;
      ASSERT_EQ(expert.error().code, ErrorCode::kInvalidData);
    }
    for (const size_t size : {size_t{0}, size_t{7}, size_t{191}, size_t{192}, p.blob.size() - 1}) {
      ASSERT_FALSE(unpack_expert(std::span(p.blob).first(size), p.name, p.kind)) << size << " bytes";
    }
    Blob longer = p.blob;
    longer.push_back(std::byte{0});
    ASSERT_FALSE(unpack_expert(longer, p.name, p.kind));
  }
}

TEST(ExpertBlob, AnotherExpertIsRefusedByName) {
  const Packed p(kForms[0]);
  const auto message = [&](const ExpertName& name, const ExpertKind& kind) {
    const auto expert = unpack_expert(p.blob, name, kind);
    return expert ? std::string("taken") : expert.error().message;
  };
  EXPECT_NE(message({3, 12, 1, 2}, p.kind).find("expected expert 12 of layer 3, cut 1 of 2, found 11 of layer 3"),
            std::string::npos);
  EXPECT_NE(message({3, 11, 0, 2}, p.kind).find("cut 0 of 2, found 11 of layer 3, cut 1 of 2"), std::string::npos);
  ExpertKind kind = p.kind;
  kind.down.group_size = 64;
  EXPECT_NE(message(p.name, kind).find("exact group 64 with bias, found w4_lanes16 version 1 [64, 64] exact group 32"),
            std::string::npos)
      << message(p.name, kind);
  kind = p.kind;
  kind.gate_up.numerics = Numerics::kVllm;
  EXPECT_NE(message(p.name, kind).find("expected gate_up"), std::string::npos);
  kind = p.kind;
  kind.gate_up.is_w4 = false;
  EXPECT_NE(message(p.name, kind).find("bf16_lanes16 version 1"), std::string::npos);
}

TEST(ExpertBlob, TravelsToOneRank) {
  const Status done = parallel::run_rank_threads(3, [](parallel::Communicator& ranks) -> Status {
    const Blob sent = {std::byte{1}, std::byte{2}, std::byte{3}};
    Blob blob = ranks.rank() == 2 ? sent : Blob{};
    QD_TRY_STATUS(send_blob(ranks, 2, 0, &blob));
    const bool expected = ranks.rank() == 1 ? blob.empty() : blob == sent;
    if (expected) return {};
    return make_error(ErrorCode::kInvalidData, "{} bytes", blob.size());
  });
  EXPECT_TRUE(done) << done.error().message;
}

}  // namespace
}  // namespace quadrille::moe

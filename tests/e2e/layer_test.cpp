// SPDX-License-Identifier: Apache-2.0
// quadrille layer against a real layer of vLLM on an H100, and what it says about files that are not right.
#include <gmock/gmock.h>

#include <cstring>
#include <filesystem>
#include <map>

#include "e2e/program.h"
#include "formats/safetensors.h"
#include "formats/safetensors_writer.h"

namespace quadrille::testing {
namespace {

using formats::DType;
using formats::SafetensorsFile;
using formats::TensorView;
using ::testing::HasSubstr;

// The golden file, or the copy of its layer in tests/data; "" when neither is there.
std::string layer_golden() {
  const auto golden = golden_path("vllm_h100.safetensors");
  if (golden) return *golden;
  for (const char* name : {"kernels/vllm_h100_cut.safetensors"}) {
    if (std::filesystem::exists(data_path(name))) return data_path(name);
  }
  return "";
}
constexpr const char* kNoLayer = "needs vllm_h100.safetensors: set QUADRILLE_GOLDEN to the golden folder";

SafetensorsFile open(const std::string& path) {
  auto file = SafetensorsFile::open(path);
  if (!file) throw std::runtime_error(file.error().message);
  return *file;
}

bool equal(const TensorView& a, const TensorView& b) {
  return a.dtype == b.dtype && a.shape == b.shape && a.bytes.size() == b.bytes.size() &&
         std::memcmp(a.bytes.data(), b.bytes.data(), a.bytes.size()) == 0;
}

const std::vector<std::string> kInputs = {"w13_packed", "w13_scale",    "w2_packed", "w2_scale",
                                          "x",          "topk_weights", "topk_ids"};
const std::vector<std::string> kStages = {"a1",
                                          "a1_scale",
                                          "expert_first_token_offset",
                                          "inv_permuted_idx",
                                          "permuted_idx",
                                          "gemm1_out",
                                          "act",
                                          "a2",
                                          "a2_scale",
                                          "gemm2_out",
                                          "out"};

TEST(Layer, HopperReproducesEveryStageOfVllmBitForBit) {
  const std::string golden = layer_golden();
  if (golden.empty()) GTEST_SKIP() << kNoLayer;
  TemporaryFolder folder;
  const Outcome outcome = run_program(
      {"layer", golden, folder / "out.safetensors", "--numerics", "vllm", "--kernels", "hopper", "--stages"});
  ASSERT_EXIT_OK(outcome);
  EXPECT_THAT(outcome.out, HasSubstr("hopper"));
  const SafetensorsFile expected = open(golden), found = open(folder / "out.safetensors");
  for (const std::string& name : kStages) {
    const TensorView* a = expected.find("layer." + name);
    const TensorView* b = found.find(name);
    ASSERT_NE(a, nullptr) << name;
    ASSERT_NE(b, nullptr) << name;
    EXPECT_TRUE(equal(*a, *b)) << name;
  }
}

// The golden layer with tensors changed, without the prefix; every stage tensor left out.
class LayerFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    if (layer_golden().empty()) GTEST_SKIP() << kNoLayer;
    const SafetensorsFile file = open(layer_golden());
    for (const std::string& name : kInputs) {
      const TensorView* tensor = file.find("layer." + name);
      ASSERT_NE(tensor, nullptr) << name;
      tensors[name] = {{name, tensor->dtype, tensor->shape}, {tensor->bytes.begin(), tensor->bytes.end()}};
    }
  }

  struct Tensor {
    formats::TensorDeclaration declaration;
    std::vector<std::byte> bytes;
  };

  std::string write(const std::map<std::string, std::string>& metadata = {}) {
    std::vector<formats::TensorDeclaration> declarations;
    for (const auto& [name, tensor] : tensors) declarations.push_back(tensor.declaration);
    const std::string path = folder / "in.safetensors";
    auto writer = formats::SafetensorsWriter::create(path, declarations, metadata);
    EXPECT_TRUE(writer);
    for (const auto& [name, tensor] : tensors) EXPECT_TRUE(writer->write(tensor.declaration.name, tensor.bytes));
    EXPECT_TRUE(writer->finish());
    return path;
  }

  Outcome run(const std::string& in, std::vector<std::string> more = {}) {
    more.insert(more.begin(), {"layer", in, folder / "out.safetensors"});
    return run_program(more);
  }

  TemporaryFolder folder;
  std::map<std::string, Tensor> tensors;
};

TEST_F(LayerFiles, PrefixMakesNoDifferenceAndCpuTablesAgree) {
  ASSERT_EXIT_OK(run(layer_golden(), {"--kernels", "generic"}));
  const SafetensorsFile first = open(folder / "out.safetensors");
  EXPECT_EQ(first.tensors().size(), 1u) << "only out without --stages";
  EXPECT_EQ(first.metadata().at("kernels"), "generic");
  const std::vector<std::byte> expected(first.find("out")->bytes.begin(), first.find("out")->bytes.end());
  const std::string in = write();
  const auto tables = parse_json(run_program({"version", "--json"}).out)["tables"];
  for (const auto& table : tables) {
    const auto name = table["name"].get<std::string>();
    if (!table["available"].get<bool>() || table["by_name_only"].get<bool>()) continue;
    ASSERT_EXIT_OK(run(in, {"--kernels", name, "--threads", "1"}));
    const SafetensorsFile found = open(folder / "out.safetensors");
    ASSERT_EQ(found.find("out")->bytes.size(), expected.size());
    EXPECT_EQ(std::memcmp(found.find("out")->bytes.data(), expected.data(), expected.size()), 0) << name;
  }
}

TEST_F(LayerFiles, TypesOfTheStages) {
  ASSERT_EXIT_OK(run(write(), {"--stages"}));
  EXPECT_EQ(open(folder / "out.safetensors").find("gemm1_out")->dtype, DType::kF32)
      << "exact keeps gate and up in fp32";
  EXPECT_EQ(open(folder / "out.safetensors").find("out")->dtype, DType::kBF16);
  ASSERT_EXIT_OK(run(write(), {"--stages", "--round", "f32"}));
  const SafetensorsFile f32 = open(folder / "out.safetensors");
  for (const char* name : {"gemm1_out", "act", "gemm2_out", "out"})
    EXPECT_EQ(f32.find(name)->dtype, DType::kF32) << name;
  EXPECT_EQ(f32.find("a1")->dtype, DType::kF8E4M3);
}

TEST_F(LayerFiles, WideIdsAndRoutesThatAreElsewhere) {
  Tensor& ids = tensors["topk_ids"];
  ASSERT_EXIT_OK(run(write()));
  const SafetensorsFile narrow = open(folder / "out.safetensors");
  const std::vector<std::byte> expected(narrow.find("out")->bytes.begin(), narrow.find("out")->bytes.end());
  std::vector<int64_t> wide;
  for (size_t i = 0; i < ids.bytes.size(); i += 4) {
    int32_t id = 0;
    std::memcpy(&id, ids.bytes.data() + i, 4);
    wide.push_back(id);
  }
  ids.declaration.dtype = DType::kI64;
  const auto store = [&] {
    ids.bytes.resize(8 * wide.size());
    std::memcpy(ids.bytes.data(), wide.data(), ids.bytes.size());
  };
  store();
  ASSERT_EXIT_OK(run(write()));
  EXPECT_EQ(std::memcmp(open(folder / "out.safetensors").find("out")->bytes.data(), expected.data(), expected.size()),
            0);
  wide[0] = wide[1] = -1;  // the first token has no expert here: its row is zero
  store();
  ASSERT_EXIT_OK(run(write()));
  const SafetensorsFile file = open(folder / "out.safetensors");
  const TensorView* out = file.find("out");
  for (int64_t i = 0; i < 2 * out->shape[1]; ++i) EXPECT_EQ(out->bytes[static_cast<size_t>(i)], std::byte{0});
  wide[0] = 4;
  store();
  const Outcome outcome = run(write());
  EXPECT_EXIT_CODE(outcome, 1);
  EXPECT_THAT(outcome.err, HasSubstr("expected an expert of 0..3"));
}

TEST_F(LayerFiles, DeviceOptionsThatDoNotFit) {
  const std::string in = write();
  const auto expect_usage = [&](std::vector<std::string> more, const std::string& text) {
    const Outcome outcome = run(in, std::move(more));
    EXPECT_EXIT_CODE(outcome, 2);
    EXPECT_THAT(outcome.err, HasSubstr(text));
  };
  expect_usage({"--repeat", "5"}, "only with --device cuda");
  expect_usage({"--device", "cuda", "--stages"}, "only with --device cpu");
  expect_usage({"--device", "cuda", "--kernels", "generic"}, "only with --device cpu");
  expect_usage({"--device", "cuda", "--round", "f32"}, "only with --device cpu");
  expect_usage({"--device", "tpu"}, "tpu");
  EXPECT_FALSE(std::filesystem::exists(folder / "out.safetensors"));
}

// On a machine without a Hopper GPU the reason, else the bits of the table hopper.
TEST_F(LayerFiles, DeviceGivesTheBitsOfHopperOrTheReason) {
  for (const char* numerics : {"exact", "vllm"}) {
    const std::string in = write();
    const Outcome outcome = run(in, {"--device", "cuda", "--numerics", numerics, "--repeat", "3"});
    if (outcome.exit_code != 0) {
      EXPECT_EXIT_CODE(outcome, 1);
      EXPECT_THAT(outcome.err, ::testing::AnyOf(HasSubstr("expected"), HasSubstr("configure with -DQD_CUDA=ON")));
      EXPECT_FALSE(std::filesystem::exists(folder / "out.safetensors"));
      GTEST_SKIP() << outcome.err;
    }
    EXPECT_THAT(outcome.out, HasSubstr("median of 3 replays"));
    const SafetensorsFile file = open(folder / "out.safetensors");
    const std::vector<std::byte> found(file.find("out")->bytes.begin(), file.find("out")->bytes.end());
    ASSERT_EXIT_OK(run(in, {"--kernels", "hopper", "--numerics", numerics}));
    const SafetensorsFile expected = open(folder / "out.safetensors");
    ASSERT_EQ(expected.find("out")->bytes.size(), found.size());
    EXPECT_EQ(std::memcmp(expected.find("out")->bytes.data(), found.data(), found.size()), 0) << numerics;
  }
}

TEST_F(LayerFiles, ErrorsNameFileAndTensor) {
  const auto expect_error = [&](const std::string& in, const std::string& text, std::vector<std::string> more = {}) {
    const Outcome outcome = run(in, std::move(more));
    EXPECT_EXIT_CODE(outcome, 1);
    EXPECT_THAT(outcome.err, HasSubstr(text));
    EXPECT_FALSE(std::filesystem::exists(folder / "out.safetensors"));
  };
  const auto original = tensors;
  tensors.erase("w2_scale");
  expect_error(write(), "no tensor 'w2_scale'");
  tensors = original;
  tensors["w2_packed"].declaration.shape = {4, 128, 64};
  expect_error(write(), "tensor 'w2_packed': expected I32 [4, 256, 32], found I32 [4, 128, 64]");
  tensors = original;
  tensors["x"].declaration.dtype = DType::kF16;
  expect_error(write(), "tensor 'x': expected BF16 or F32");
  tensors = original;
  std::memset(tensors["w13_scale"].bytes.data() + 8, 0xFF, 2);  // a NaN
  expect_error(write(), "w13");
  tensors = original;
  tensors["w13_scale"].declaration.shape = {4, 256, 4};
  expect_error(write(), "w13_scale");
  tensors = original;
  expect_error(write({{"activation", "gelu"}}), "legal: silu");
  expect_error(write(), "--round f32", {"--kernels", "hopper", "--round", "f32"});
  write_text(folder / "in.safetensors", "garbage");
  expect_error(folder / "in.safetensors", "in.safetensors");
}

}  // namespace
}  // namespace quadrille::testing

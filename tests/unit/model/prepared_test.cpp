// SPDX-License-Identifier: Apache-2.0
// Prepared folders: they give the bits of the checkpoint they were made from, nothing damaged in them is computed with,
// and what they are not for is refused in words.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "formats/prepared_layout.h"
#include "golden_model.h"
#include "kernels/api/registry.h"
#include "model/description.h"
#include "model/prepare_folder.h"
#include "model/prepared_weights.h"
#include "parallel/thread_group.h"
#include "support/golden.h"
#include "support/scratch_folder.h"

namespace quadrille::testing {
namespace {

using kernels::Numerics;
using kernels::Rounding;
using ::testing::HasSubstr;

const std::vector<std::vector<int32_t>> kPrompts = {{5, 17, 200, 3, 91, 44, 8}, {2, 2, 60}};
const char* const kFile = "/weights.quadrille";

model::LoadOptions options(Numerics numerics = Numerics::kExact) {
  return options_of({"generic", numerics, Rounding::kBf16});
}

void expect_same_bits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].values.size(), b[i].values.size());
    EXPECT_EQ(std::memcmp(a[i].values.data(), b[i].values.data(), a[i].values.size() * sizeof(float)), 0) << i;
  }
}

std::vector<Tensor> logits_of(const std::string& folder, const model::LoadOptions& with) {
  const auto model = load_model(folder, with);
  return model == nullptr ? std::vector<Tensor>() : run_sequences(*model, kPrompts);
}

class Prepared : public ::testing::Test {
 protected:
  std::string prepare(const std::string& source, Numerics numerics = Numerics::kExact) {
    const std::string out = scratch.file("out" + std::to_string(count++));
    const auto report = model::prepare_folder(source, out, options(numerics));
    EXPECT_TRUE(report.ok()) << (report ? "" : report.error().message);
    return out;
  }
  // Changes bytes of a prepared file.
  static void poke(const std::string& folder, uint64_t offset, std::span<const std::byte> bytes) {
    std::fstream file(folder + kFile, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(offset));
    file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  static void flip(const std::string& folder, uint64_t offset) {
    std::fstream file(folder + kFile, std::ios::binary | std::ios::in | std::ios::out);
    file.seekg(static_cast<std::streamoff>(offset));
    const auto byte = static_cast<std::byte>(file.get());
    const std::byte changed = byte ^ std::byte{1};
    poke(folder, offset, {&changed, 1});
  }
  static formats::PreparedSection section(const std::string& folder, const char* name, int64_t layer, int64_t expert) {
    const auto file = formats::PreparedFile::open(folder + kFile);
    EXPECT_TRUE(file.ok());
    return *(*file)->find(name, layer, expert);
  }
  // Rewrites the form of a section, with checksums that agree.
  static void change_form(const std::string& folder, const char* name, int64_t layer, size_t at, std::byte value) {
    std::vector<std::byte> bytes;
    {
      std::ifstream in(folder + kFile, std::ios::binary);
      const std::string text((std::istreambuf_iterator<char>(in)), {});
      const auto all = std::as_bytes(std::span(text));
      bytes.assign(all.begin(), all.end());
    }
    formats::PreparedPage page;
    std::memcpy(&page, bytes.data(), sizeof(page));
    for (uint64_t i = 0; i < page.num_sections; ++i) {
      std::byte* place = bytes.data() + page.index_offset + i * sizeof(formats::PreparedRecord);
      formats::PreparedRecord record;
      std::memcpy(&record, place, sizeof(record));
      if (record.name != std::string(name) || record.layer != layer) continue;
      record.form[at] = value;
      std::memcpy(place, &record, sizeof(record));
      break;
    }
    page.index_checksum = checksum_of(std::span(bytes).subspan(page.index_offset));
    std::memcpy(bytes.data(), &page, sizeof(page));
    const uint64_t sum = checksum_of(std::span(bytes).first(formats::kHeadChecksumAt));
    std::memcpy(bytes.data() + formats::kHeadChecksumAt, &sum, sizeof(sum));
    poke(folder, 0, bytes);
  }
  static void expect_error(const Status& status, ErrorCode code, const std::vector<std::string>& words) {
    ASSERT_FALSE(status.ok());
    EXPECT_STREQ(error_code_name(status.error().code), error_code_name(code)) << status.error().message;
    for (const std::string& word : words) EXPECT_THAT(status.error().message, HasSubstr(word));
  }
  static Status load_status(const std::string& folder, const model::LoadOptions& with) {
    const auto model = model::Model::load(folder, with);
    return model ? Status() : Status(model.error());
  }

  ScratchFolder scratch;
  int count = 0;
  const std::string source = data_path("models/olmoe_clip/w4a8-g64");
};

TEST_F(Prepared, EveryFamilyGivesTheBitsOfItsCheckpoint) {
  for (const char* name : {"olmoe_clip/w4a8-g64", "qwen2_moe/w4a8-g64", "qwen3_moe/w4a8-channel",
                           "mixtral/w4a8-g128-int", "qwen3_moe/bf16", "olmoe/bf16"}) {
    const auto folder = model_path(name);
    if (!folder) continue;
    for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
      SCOPED_TRACE(name);
      const std::string prepared = prepare(*folder, numerics);
      expect_same_bits(logits_of(prepared, options(numerics)), logits_of(*folder, options(numerics)));
      const auto check = model::check_prepared(prepared, *model::read_model_config(prepared), &test_pool());
      EXPECT_TRUE(check.ok()) << (check ? "" : check.error().message);
    }
  }
}

TEST_F(Prepared, EveryTableOfThisMachineComputesFromIt) {
  const std::string prepared = prepare(source);
  for (const kernels::KernelTable* table : kernels::all_tables()) {
    if (!table_unavailable(table->name).empty()) continue;
    model::LoadOptions with = options();
    with.table = table;
    SCOPED_TRACE(table->name);
    expect_same_bits(logits_of(prepared, with), logits_of(source, with));
  }
}

TEST_F(Prepared, OpeningReadsNoExpertAndTheFirstTokenNamesTheDamagedOne) {
  const std::string prepared = prepare(source);
  const formats::PreparedSection expert = section(prepared, "expert", 1, 3);
  for (const uint64_t at : {uint64_t{0}, uint64_t{200}, expert.bytes - 1}) {
    flip(prepared, expert.offset + at);
    const auto model = load_model(prepared, options());
    ASSERT_NE(model, nullptr) << "an expert is not read to open the folder";
    // Every expert of the small model gets a token of so many.
    std::vector<int32_t> ids, positions, sequences(64, 0), pages = {0}, rows;
    for (int32_t i = 0; i < 64; ++i) {
      ids.push_back((i * 37 + 5) % 200);
      positions.push_back(i);
    }
    for (int again = 0; again < 2; ++again) {
      expect_error(model->run({ids, positions, sequences, pages, 1, rows}, {}), ErrorCode::kInvalidData,
                   {prepared, "'expert' 3 of layer 1", "checksum", "quadrille prepare"});
    }
    flip(prepared, expert.offset + at);
  }
}

TEST_F(Prepared, DamageOfEverySectionIsFoundBeforeOrAtItsFirstUse) {
  const std::string prepared = prepare(data_path("models/qwen2_moe/w4a8-g64"));
  const auto config = model::read_model_config(prepared);
  std::vector<formats::PreparedSection> sections;
  {
    const auto file = formats::PreparedFile::open(prepared + kFile);
    ASSERT_TRUE(file.ok());
    sections = (*file)->sections();
  }
  for (const formats::PreparedSection& one : sections) {
    if (one.name == "expert" && one.expert % 5 != 0) continue;
    const uint64_t at = one.offset + one.bytes / 2;
    flip(prepared, at);
    const auto check = model::check_prepared(prepared, *config, &test_pool());
    ASSERT_FALSE(check.ok()) << one.text();
    EXPECT_THAT(check.error().message, HasSubstr(one.text()));
    if (one.name != "expert" && one.name != "embedding") {
      const auto model = model::Model::load(prepared, options());
      const std::vector<int32_t> ids = {3}, positions = {0}, sequences = {0}, pages = {0};
      const Status status = model ? (*model)->run({ids, positions, sequences, pages, 1, {}}, {}) : model.error();
      EXPECT_FALSE(status.ok()) << one.text();
    }
    flip(prepared, at);
  }
  EXPECT_TRUE(model::check_prepared(prepared, *config, &test_pool()).ok());
}

TEST_F(Prepared, SaysWhatItIsNotFor) {
  const std::string prepared = prepare(source);
  expect_error(load_status(prepared, options(Numerics::kVllm)), ErrorCode::kInvalidArgument,
               {"--numerics exact", "asked to run in 'vllm'"});
  const auto twice = model::prepare_folder(prepared, scratch.file("twice"), options());
  expect_error(twice ? Status() : Status(twice.error()), ErrorCode::kUnsupported, {"checkpoint that it was made from"});
  EXPECT_FALSE(std::filesystem::exists(scratch.file("twice")));
  const Status split = parallel::run_rank_threads(2, [&](parallel::Communicator& ranks) -> Status {
    ThreadPool pool(1);
    model::LoadOptions with = options();
    with.pool = &pool;
    with.ranks = &ranks;
    return load_status(prepared, with);
  });
  expect_error(split, ErrorCode::kUnsupported, {"tensor-parallel ranks", "checkpoint"});
  const auto taken = model::prepare_folder(source, prepared, options());
  expect_error(taken ? Status() : Status(taken.error()), ErrorCode::kInvalidArgument, {"exists already"});
}

TEST_F(Prepared, AnotherLayoutOrModelIsRefused) {
  const std::string prepared = prepare(source);
  // The version of the tag is behind its 24 letters.
  change_form(prepared, "q", 0, 24, std::byte{9});
  expect_error(load_status(prepared, options()), ErrorCode::kUnsupported,
               {"'q' of layer 0", "w4_lanes16 version 1", "found w4_lanes16 version 9", "quadrille prepare"});
  change_form(prepared, "q", 0, 24, std::byte{1});
  change_form(prepared, "k", 0, 0, std::byte{'x'});
  expect_error(load_status(prepared, options()), ErrorCode::kUnsupported, {"'k' of layer 0", "found x4_lanes16"});
  change_form(prepared, "k", 0, 0, std::byte{'w'});
  change_form(prepared, "v", 1, 40, std::byte{3});  // k
  expect_error(load_status(prepared, options()), ErrorCode::kInvalidData, {"'v' of layer 1", "expected w4_lanes16"});
  const std::string other = prepare(data_path("models/qwen2_moe/w4a8-g64"));
  std::filesystem::copy_file(prepared + "/config.json", other + "/config.json",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_FALSE(load_status(other, options()).ok());
}

TEST_F(Prepared, ExpertsSpreadOverRanksGiveTheSameBits) {
  const std::string prepared = prepare(source);
  const std::vector<Tensor> expected = logits_of(source, options());
  const auto on_two = [&](const model::ExpertMove* move) {
    return parallel::run_rank_threads(2, [&](parallel::Communicator& ranks) -> Status {
      ThreadPool pool(1);
      model::LoadOptions with = options();
      with.pool = &pool;
      with.expert_ranks = &ranks;
      QD_TRY(const std::unique_ptr<model::Model> model, model::Model::load(prepared, with));
      if (move != nullptr) QD_TRY_STATUS(model->move_expert(*move));
      expect_same_bits(run_sequences(*model, kPrompts), expected);
      return {};
    });
  };
  const Status still = on_two(nullptr);
  EXPECT_TRUE(still.ok()) << (still ? "" : still.error().message);
  // An expert leaves the mapping of one rank for the memory of the other.
  model::ExpertMove move;
  move.kind = model::ExpertMove::Kind::kMove;
  move.layer = 0;
  move.expert = 1;
  move.from = 0;
  move.to = 1;
  const Status moved = on_two(&move);
  EXPECT_TRUE(moved.ok()) << (moved ? "" : moved.error().message);
  // Ranks check what they hold before the first step.
  flip(prepared, section(prepared, "expert", 0, 0).offset + 64);
  const Status damaged = parallel::run_rank_threads(2, [&](parallel::Communicator& ranks) -> Status {
    ThreadPool pool(1);
    model::LoadOptions with = options();
    with.pool = &pool;
    with.expert_ranks = &ranks;
    return load_status(prepared, with);
  });
  expect_error(damaged, ErrorCode::kInvalidData, {"'expert' 0 of layer 0"});
}

TEST_F(Prepared, IsDescribedFromItsHeadAndIndex) {
  const std::string prepared = prepare(source);
  const auto before = model::describe_model(source), after = model::describe_model(prepared);
  ASSERT_TRUE(before.ok());
  ASSERT_TRUE(after.ok()) << after.error().message;
  EXPECT_EQ(after->parameters, before->parameters);
  EXPECT_EQ(after->active_parameters, before->active_parameters);
  EXPECT_EQ(after->weight_memory_bytes, before->weight_memory_bytes);
  EXPECT_EQ(after->quantization_format, "prepared for exact");
  ASSERT_EQ(after->modules.size(), before->modules.size());
  for (size_t i = 0; i < after->modules.size(); ++i) {
    EXPECT_EQ(after->modules[i].path, before->modules[i].path);
    EXPECT_EQ(after->modules[i].shape, before->modules[i].shape);
    EXPECT_EQ(after->modules[i].decision.kind, before->modules[i].decision.kind);
  }
}

}  // namespace
}  // namespace quadrille::testing

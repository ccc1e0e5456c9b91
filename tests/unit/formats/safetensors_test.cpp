// SPDX-License-Identifier: Apache-2.0
#include "formats/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>

#include "support/golden.h"
#include "support/scratch_folder.h"
#include "unit/formats/safetensors_bytes.h"

namespace quadrille::formats {
namespace {

using ::quadrille::testing::ScratchFolder;
using ::testing::HasSubstr;
using testing::kTwoTensors;
using testing::length_bytes;
using testing::safetensors_bytes;

class SafetensorsTest : public ::testing::Test {
 protected:
  Result<SafetensorsFile> open(const std::string& bytes) {
    return SafetensorsFile::open(folder_.write("t.safetensors", bytes));
  }
  // "no error", or the message; the code must be kInvalidData and the file named.
  std::string error_of(const std::string& bytes) {
    const auto file = open(bytes);
    if (file) return "no error";
    EXPECT_EQ(file.error().code, ErrorCode::kInvalidData) << file.error().message;
    EXPECT_THAT(file.error().message, HasSubstr("t.safetensors"));
    return file.error().message;
  }
  std::string error_of_header(const std::string& header, size_t data_bytes) {
    return error_of(safetensors_bytes(header, data_bytes));
  }
  ScratchFolder folder_;
};

std::string one_tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"t":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

TEST_F(SafetensorsTest, ReadsTheReferenceFile) {
  ASSERT_EQ(kTwoTensors.size(), 120u);
  const auto file = open(safetensors_bytes(kTwoTensors, 12));
  ASSERT_TRUE(file) << file.error().message;
  ASSERT_EQ(file->tensors().size(), 2u);
  const TensorView* w = file->find("w");
  const TensorView* s = file->find("s");
  ASSERT_TRUE(w != nullptr && s != nullptr);
  EXPECT_EQ(file->find("x"), nullptr);
  EXPECT_EQ(w->dtype, DType::kI32);
  EXPECT_EQ(w->shape, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(w->num_elements(), 2);
  EXPECT_EQ(w->file_offset, 128u);
  EXPECT_EQ(s->file_offset, 136u);
  EXPECT_EQ(s->bytes[0], std::byte{8});
  std::vector<std::byte> copy(4);
  ASSERT_TRUE(s->copy_to(copy));
  EXPECT_EQ(std::memcmp(copy.data(), s->bytes.data(), 4), 0);
  EXPECT_THAT(s->where(), HasSubstr("t.safetensors: tensor 's'"));
  EXPECT_EQ(s->copy_to(std::span(copy).first(3)).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(s->copy_part(2, std::span(copy).first(3)).error().code, ErrorCode::kInvalidArgument);
}

TEST_F(SafetensorsTest, AcceptsWhatTheReferenceAccepts) {
  EXPECT_EQ(error_of_header("{}    ", 0), "no error");
  EXPECT_EQ(error_of_header(one_tensor("F32", "[]", "[0,4]"), 4), "no error");
  EXPECT_EQ(error_of_header(one_tensor("F32", "[2,0]", "[0,0]"), 0), "no error");
  EXPECT_EQ(error_of_header("\t\n" + one_tensor("F32", "[1]", "[0,4]") + " \r\n", 4), "no error");
  EXPECT_EQ(error_of_header(one_tensor("F4", "[4]", "[0,2]"), 2), "no error");
  EXPECT_EQ(error_of_header(one_tensor("F6_E2M3", "[4]", "[0,3]"), 3), "no error");
  EXPECT_EQ(error_of_header(R"({"__metadata__":null})", 0), "no error");
  // A key of a record that is not known.
  EXPECT_EQ(error_of_header(R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"extra":[1]}})", 1), "no error");
}

TEST_F(SafetensorsTest, AcceptsZeroSizedTensorsBesideOthers) {
  const auto file = open(safetensors_bytes(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                                           R"("e":{"dtype":"F32","shape":[0],"data_offsets":[2,2]},)"
                                           R"("f":{"dtype":"F32","shape":[0,7],"data_offsets":[2,2]},)"
                                           R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
                                           3));
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->find("e")->num_elements(), 0);
  EXPECT_EQ(file->find("b")->bytes[0], std::byte{2});
}

TEST_F(SafetensorsTest, KeepsMetadata) {
  const auto file = open(safetensors_bytes(R"({"__metadata__":{"format":"pt","x":""}})", 0));
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->metadata().at("format"), "pt");
  EXPECT_TRUE(file->tensors().empty());
}

TEST_F(SafetensorsTest, RefusesLyingLengths) {
  EXPECT_THAT(error_of(""), HasSubstr("at least 8 bytes"));
  EXPECT_THAT(error_of("1234567"), HasSubstr("at least 8 bytes"));
  EXPECT_THAT(error_of(length_bytes(60)), HasSubstr("only 0 behind"));
  EXPECT_THAT(error_of(length_bytes(0xFFFFFF000000003Cull) + "{}"), HasSubstr("at most 100000000"));
  EXPECT_THAT(error_of(length_bytes(100'000'001) + "{}"), HasSubstr("at most 100000000"));
  EXPECT_THAT(error_of(length_bytes(0) + "{}"), HasSubstr("not valid JSON"));
  std::string whole = safetensors_bytes(kTwoTensors, 12);
  EXPECT_THAT(error_of(whole.substr(0, 139)), HasSubstr("expected 140 bytes"));
  EXPECT_THAT(error_of(whole + "x"), HasSubstr("found 141"));
}

TEST_F(SafetensorsTest, RefusesRangesThatOverlapOrLeaveHoles) {
  const auto with_second = [](const std::string& offsets) {
    return R"({"w":{"dtype":"I32","shape":[2,1],"data_offsets":[0,8]},"s":{"dtype":"BF16","shape":[2,1],"data_offsets":)" +
           offsets + "}}";
  };
  EXPECT_EQ(error_of_header(with_second("[8,12]"), 12), "no error");
  EXPECT_THAT(error_of_header(with_second("[4,12]"), 12), HasSubstr("begin at 8"));
  EXPECT_THAT(error_of_header(with_second("[12,16]"), 16), HasSubstr("begin at 8"));
  EXPECT_THAT(error_of_header(with_second("[0,8]"), 8), HasSubstr("overlap"));
  EXPECT_THAT(error_of_header(one_tensor("I32", "[2]", "[8,0]"), 8), HasSubstr("[8, 0]"));
  EXPECT_THAT(error_of_header(one_tensor("I32", "[2]", "[4,12]"), 12), HasSubstr("begin at 0"));
}

TEST_F(SafetensorsTest, RefusesShapesThatLie) {
  EXPECT_THAT(error_of_header(one_tensor("I32", "[2,18446744073709551614]", "[0,8]"), 8), HasSubstr("t.shape"));
  EXPECT_THAT(error_of_header(one_tensor("I32", "[2,9223372036854775807]", "[0,8]"), 8), HasSubstr("t.shape"));
  // Within the bound of one dimension, but not of the product.
  EXPECT_THAT(error_of_header(one_tensor("I32", "[281474976710656,281474976710656]", "[0,8]"), 8),
              HasSubstr("overflows"));
  EXPECT_THAT(error_of_header(one_tensor("I32", "[281474976710656,281474976710656,0]", "[0,0]"), 0),
              HasSubstr("overflows"));
  EXPECT_THAT(error_of_header(one_tensor("F4", "[3]", "[0,2]"), 2), HasSubstr("12 bits"));
  EXPECT_THAT(error_of_header(one_tensor("I32", "[3]", "[0,8]"), 8), HasSubstr("expected 12 bytes"));
  EXPECT_THAT(error_of_header(one_tensor("I32", "[-2]", "[0,8]"), 8), HasSubstr("t.shape"));
  EXPECT_THAT(error_of_header(one_tensor("I32", "[2.0]", "[0,8]"), 8), HasSubstr("t.shape"));
  EXPECT_THAT(error_of_header(one_tensor("I32", "[36893488147419103232]", "[0,8]"), 8), HasSubstr("t.shape"));
  EXPECT_THAT(error_of_header(one_tensor("I32", "[1,1,1,1,1,1,1,1,2]", "[0,8]"), 8), HasSubstr("at most 8"));
  EXPECT_THAT(error_of_header(one_tensor("I32", "2", "[0,8]"), 8), HasSubstr("t.shape"));
}

TEST_F(SafetensorsTest, RefusesHeadersOfTheWrongForm) {
  EXPECT_THAT(error_of_header("{", 0), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of_header("\xFF", 0), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of_header("[]", 0), HasSubstr("JSON object"));
  EXPECT_THAT(error_of_header("{}" + std::string(4, '\0'), 0), HasSubstr("NUL"));
  EXPECT_THAT(error_of_header(one_tensor("FLOAT", "[1]", "[0,4]"), 4), HasSubstr("'FLOAT'"));
  EXPECT_THAT(error_of_header(one_tensor("F32", "[1]", "[0]"), 4), HasSubstr("data_offsets"));
  EXPECT_THAT(error_of_header(one_tensor("F32", "[1]", "[0,4,8]"), 4), HasSubstr("data_offsets"));
  EXPECT_THAT(error_of_header(one_tensor("F32", "[1]", "[0,4.0]"), 4), HasSubstr("data_offsets"));
  EXPECT_THAT(error_of_header(R"({"t":{"shape":[1],"data_offsets":[0,4]}})", 4), HasSubstr("t.dtype"));
  EXPECT_THAT(error_of_header(R"({"t":{"dtype":"F32","data_offsets":[0,4]}})", 4), HasSubstr("t.shape"));
  EXPECT_THAT(error_of_header(R"({"t":{"dtype":"F32","shape":[1]}})", 4), HasSubstr("t.data_offsets"));
  EXPECT_THAT(error_of_header(R"({"t":7})", 0), HasSubstr("tensor 't'"));
  EXPECT_THAT(error_of_header(R"({"__metadata__":{"a":1}})", 0), HasSubstr("__metadata__ 'a'"));
  EXPECT_THAT(error_of_header(R"({"__metadata__":7})", 0), HasSubstr("__metadata__"));
  EXPECT_THAT(error_of_header(R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                              R"("t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                              1),
              HasSubstr("'t' occurs twice"));
  EXPECT_THAT(error_of_header(R"({"a\u0000b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1), HasSubstr("NUL"));
  EXPECT_THAT(error_of_header(R"({"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1), HasSubstr("name of 1"));
  EXPECT_THAT(error_of_header(R"({"t":)" + std::string(100'000, '['), 0), HasSubstr("deeper"));
}

TEST_F(SafetensorsTest, RefusesTheFileCutAtEveryByte) {
  const std::string whole = safetensors_bytes(kTwoTensors, 12);
  ASSERT_EQ(error_of(whole), "no error");
  for (size_t length = 0; length < whole.size(); ++length)
    EXPECT_NE(error_of(whole.substr(0, length)), "no error") << length;
}

TEST_F(SafetensorsTest, EveryFlippedBitOfTheHeaderIsAnErrorOrASoundFile) {
  const std::string whole = safetensors_bytes(kTwoTensors, 12);
  for (size_t bit = 0; bit < 8 * 128; ++bit) {
    std::string bytes = whole;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    const auto file = open(bytes);
    if (!file) continue;
    // What is accepted must lie inside the file, end to end.
    size_t total = 0;
    for (const auto& [name, view] : file->tensors()) {
      EXPECT_LE(view.file_offset + view.bytes.size(), bytes.size());
      EXPECT_EQ(view.bytes.size() * 8,
                static_cast<size_t>(view.num_elements()) * static_cast<size_t>(dtype_bits(view.dtype)));
      total += view.bytes.size();
    }
    EXPECT_EQ(total, 12u);
  }
}

TEST_F(SafetensorsTest, ReadsTensorsAtOddPlaces) {
  // An odd header length: no element of the f32 tensor is aligned.
  std::string header =
      R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"f":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})";
  if (header.size() % 4 == 0) header += " ";
  std::string bytes = length_bytes(header.size()) + header + "\x07";
  const float values[2] = {1.5f, -3.25f};
  bytes.append(reinterpret_cast<const char*>(values), 8);
  const auto file = open(bytes);
  ASSERT_TRUE(file) << file.error().message;
  const TensorView* view = file->find("f");
  ASSERT_NE(reinterpret_cast<uintptr_t>(view->bytes.data()) % 4, 0u);
  float read[2] = {};
  ASSERT_TRUE(view->copy_to(std::as_writable_bytes(std::span(read))));
  EXPECT_EQ(std::memcmp(read, values, 8), 0);
}

TEST_F(SafetensorsTest, AFileThatShrinksWhileMappedIsAnError) {
  std::string header = one_tensor("U8", "[100000]", "[0,100000]");
  const auto file = open(safetensors_bytes(header, 100'000));
  ASSERT_TRUE(file) << file.error().message;
  const TensorView* view = file->find("t");
  std::vector<std::byte> copy(100'000);
  ASSERT_TRUE(view->copy_to(copy));
  ASSERT_TRUE(view->file->check_size());
  ASSERT_EQ(::truncate(folder_.file("t.safetensors").c_str(), 5000), 0);
  const Status status = view->copy_to(copy);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kInvalidData);
  EXPECT_THAT(status.error().message, HasSubstr("tensor 't'"));
  EXPECT_THAT(status.error().message, HasSubstr("t.safetensors"));
  EXPECT_FALSE(view->file->check_size());
}

TEST_F(SafetensorsTest, NamesAFileThatIsNotThere) {
  const auto file = SafetensorsFile::open(folder_.file("none.safetensors"));
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code, ErrorCode::kNotFound);
  EXPECT_FALSE(SafetensorsFile::open(folder_.path()));  // a folder
}

TEST(SafetensorsData, ReadsFilesOfTheFieldsWriter) {
  const auto file = SafetensorsFile::open(quadrille::testing::data_path("quantize/h_tail_channel.safetensors"));
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->tensors().size(), 7u);
  EXPECT_EQ(file->metadata().at("format"), "pt");
  EXPECT_EQ(file->find("weight")->shape, (std::vector<int64_t>{16, 77}));
  int64_t shape[2] = {};
  ASSERT_TRUE(file->find("weight_shape")->copy_to(std::as_writable_bytes(std::span(shape))));
  EXPECT_EQ(shape[0], 16);
  EXPECT_EQ(shape[1], 77);
}

}  // namespace
}  // namespace quadrille::formats

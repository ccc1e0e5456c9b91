// SPDX-License-Identifier: Apache-2.0
// Runs the built program as a user would: arguments, stdin, a signal after a while; gives exit code and both outputs.
#pragma once

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/golden.h"

namespace quadrille::testing {

struct Outcome {
  int exit_code = -1;  // -1 when a signal ended it
  int signal = 0;      // that ended it; 0: it exited
  bool timed_out = false;
  std::string out, err;
  double seconds = 0;
};

struct RunOptions {
  std::string stdin_text;
  double timeout_seconds = 240;
  // Sent once stdout + stderr have at least this many bytes, or after `signal_after_seconds`, whichever comes first.
  int send_signal = 0;
  size_t signal_after_bytes = 1;
  double signal_after_seconds = 60;
  // stdout is closed by its reader after this many bytes.
  bool close_stdout = false;
  size_t close_after_bytes = 0;
};

// quadrille ARGUMENTS...
Outcome run_program(const std::vector<std::string>& arguments, const RunOptions& options = {});

// The program itself, for commands that start it by other means (mpirun).
std::string program_path();

// The outcome as text, for messages.
std::string describe(const Outcome& outcome);
// Fails the test when `text` is no JSON; then an empty object.
nlohmann::json parse_json(const std::string& text);
nlohmann::json read_json(const std::string& path);
std::vector<std::string> lines_of(const std::string& text);
void write_text(const std::string& path, const std::string& text);
std::string read_text(const std::string& path);

// A folder that goes away with the object.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Makes FOLDER/NAME: the small W4A8 model of tests/data (Qwen2-MoE shape, random weights) with a byte-level tokenizer
// of 256 bytes and three special tokens, and a ChatML template. Its answers are nonsense, bytes that are no UTF-8
// among them. Returns the path.
std::string make_small_model(const TemporaryFolder& folder, const std::string& name = "small");
// Ids of the special tokens of that tokenizer.
inline constexpr int kEndOfText = 256, kImStart = 257, kImEnd = 258;

// The bundled model, or "" when it is not there.
std::string abacus_path(const std::string& name);
inline constexpr const char* kNoAbacus = "needs models/abacus with its weights";

}  // namespace quadrille::testing

#define EXPECT_EXIT_CODE(outcome, code) \
  EXPECT_EQ((outcome).exit_code, (code)) << ::quadrille::testing::describe(outcome)
#define ASSERT_EXIT_OK(outcome) ASSERT_EQ((outcome).exit_code, 0) << ::quadrille::testing::describe(outcome)

// SPDX-License-Identifier: Apache-2.0
// fork, exec and poll: one thread feeds stdin and reads both outputs, so that no pipe can fill up and hang.
#include "e2e/program.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace quadrille::testing {
namespace {

using Clock = std::chrono::steady_clock;

struct Pipe {
  int read_end = -1, write_end = -1;
  Pipe() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) == 0) {
      read_end = ends[0];
      write_end = ends[1];
    }
  }
  ~Pipe() {
    close_end(read_end);
    close_end(write_end);
  }
  static void close_end(int& end) {
    if (end >= 0) ::close(end);
    end = -1;
  }
};

pid_t start(const std::vector<std::string>& arguments, Pipe& in, Pipe& out, Pipe& err) {
  std::vector<std::string> words = {QD_PROGRAM};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const pid_t child = ::fork();
  if (child != 0) return child;
  ::dup2(in.read_end, STDIN_FILENO);
  ::dup2(out.write_end, STDOUT_FILENO);
  ::dup2(err.write_end, STDERR_FILENO);
  ::execv(QD_PROGRAM, argv.data());
  ::_exit(127);
}

// Reads what is there; closes the end when the writer is gone.
void drain(int& end, std::string* text) {
  char buffer[1 << 16];
  const ssize_t count = ::read(end, buffer, sizeof buffer);
  if (count > 0) {
    text->append(buffer, static_cast<size_t>(count));
  } else if (count == 0 || errno != EINTR) {
    Pipe::close_end(end);
  }
}

void feed(int& end, const std::string& text, size_t* fed) {
  const ssize_t count = ::write(end, text.data() + *fed, text.size() - *fed);
  if (count > 0) *fed += static_cast<size_t>(count);
  const bool is_full = count < 0 && errno == EAGAIN;
  if ((count < 0 && !is_full) || *fed == text.size()) Pipe::close_end(end);
}

}  // namespace

Outcome run_program(const std::vector<std::string>& arguments, const RunOptions& options) {
  ::signal(SIGPIPE, SIG_IGN);
  Pipe in, out, err;
  Outcome outcome;
  const auto begin = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  const pid_t child = start(arguments, in, out, err);
  ::fcntl(in.write_end, F_SETFL, O_NONBLOCK);  // the program may stop reading while it waits for us to read
  Pipe::close_end(in.read_end);
  Pipe::close_end(out.write_end);
  Pipe::close_end(err.write_end);
  size_t fed = 0;
  bool signalled = false;
  if (options.stdin_text.empty()) Pipe::close_end(in.write_end);
  while (out.read_end >= 0 || err.read_end >= 0) {
    pollfd ends[3] = {{in.write_end, POLLOUT, 0}, {out.read_end, POLLIN, 0}, {err.read_end, POLLIN, 0}};
    ::poll(ends, 3, 20);
    if (ends[0].fd >= 0 && ends[0].revents != 0) feed(in.write_end, options.stdin_text, &fed);
    if (ends[1].fd >= 0 && ends[1].revents != 0) drain(out.read_end, &outcome.out);
    if (ends[2].fd >= 0 && ends[2].revents != 0) drain(err.read_end, &outcome.err);
    if (options.close_stdout && outcome.out.size() >= options.close_after_bytes) Pipe::close_end(out.read_end);
    const bool is_due = outcome.out.size() + outcome.err.size() >= options.signal_after_bytes ||
                        elapsed() > options.signal_after_seconds;
    if (options.send_signal != 0 && !signalled && is_due) {
      ::kill(child, options.send_signal);
      signalled = true;
    }
    if (elapsed() > options.timeout_seconds) {
      outcome.timed_out = true;
      ::kill(child, SIGKILL);
      break;
    }
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  outcome.seconds = elapsed();
  if (WIFEXITED(status)) outcome.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) outcome.signal = WTERMSIG(status);
  return outcome;
}

std::string program_path() {
  return QD_PROGRAM;
}

std::string describe(const Outcome& outcome) {
  std::ostringstream text;
  text << "exit code " << outcome.exit_code << ", signal " << outcome.signal << (outcome.timed_out ? ", timed out" : "")
       << ", " << outcome.seconds << " s\n--- stdout\n"
       << outcome.out.substr(0, 4000) << "\n--- stderr\n"
       << outcome.err.substr(0, 4000) << "\n---";
  return text.str();
}

nlohmann::json parse_json(const std::string& text) {
  auto json = nlohmann::json::parse(text, nullptr, false);
  EXPECT_FALSE(json.is_discarded()) << "no JSON: " << text.substr(0, 2000);
  return json.is_discarded() ? nlohmann::json::object() : json;
}

nlohmann::json read_json(const std::string& path) {
  return parse_json(read_text(path));
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "quadrille-XXXXXX").string();
  const char* made = ::mkdtemp(pattern.data());
  EXPECT_NE(made, nullptr);
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

namespace {

// The characters that byte-level BPE writes for the bytes 0..255.
std::vector<std::string> byte_characters() {
  std::vector<std::string> characters;
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool is_shown = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const int code = is_shown ? byte : next++;
    if (code < 128) {
      characters.emplace_back(1, static_cast<char>(code));
    } else {
      characters.push_back({static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 63))});
    }
  }
  return characters;
}

void write_byte_tokenizer(const std::string& folder) {
  nlohmann::json vocabulary = nlohmann::json::object();
  const auto characters = byte_characters();
  for (size_t byte = 0; byte < characters.size(); ++byte) vocabulary[characters[byte]] = byte;
  nlohmann::json added = nlohmann::json::array();
  for (const auto& [id, content] :
       {std::pair(kEndOfText, "<|endoftext|>"), std::pair(kImStart, "<|im_start|>"), std::pair(kImEnd, "<|im_end|>")}) {
    added.push_back({{"id", id},
                     {"content", content},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const nlohmann::json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", true}};
  const nlohmann::json tokenizer = {{"version", "1.0"},
                                    {"truncation", nullptr},
                                    {"padding", nullptr},
                                    {"added_tokens", added},
                                    {"normalizer", nullptr},
                                    {"pre_tokenizer", byte_level},
                                    {"decoder", byte_level},
                                    {"post_processor", byte_level},
                                    {"model",
                                     {{"type", "BPE"},
                                      {"dropout", nullptr},
                                      {"unk_token", nullptr},
                                      {"continuing_subword_prefix", nullptr},
                                      {"end_of_word_suffix", nullptr},
                                      {"fuse_unk", false},
                                      {"byte_fallback", false},
                                      {"vocab", vocabulary},
                                      {"merges", nlohmann::json::array()}}}};
  const nlohmann::json config = {
      {"tokenizer_class", "Qwen2Tokenizer"},
      {"bos_token", nullptr},
      {"eos_token", "<|im_end|>"},
      {"chat_template",
       "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' "
       "}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"}};
  write_text(folder + "/tokenizer.json", tokenizer.dump());
  write_text(folder + "/tokenizer_config.json", config.dump());
}

}  // namespace

std::string make_small_model(const TemporaryFolder& folder, const std::string& name) {
  const std::string path = folder / name;
  std::filesystem::copy(data_path("models/qwen2_moe/w4a8-g64"), path);
  write_byte_tokenizer(path);
  return path;
}

std::string abacus_path(const std::string& name) {
  const std::string path = source_path("models/abacus/" + name);
  return std::filesystem::exists(path) ? path : "";
}

}  // namespace quadrille::testing

// SPDX-License-Identifier: Apache-2.0
// The bounded parse: a SAX handler that builds the tree itself, so that depth, number of values and duplicate keys are
// checked before they cost anything.
#include <cstring>

#include "core/mapped_file.h"
#include "formats/json.h"

namespace quadrille::formats {
namespace {

// Places of a byte in the text, for messages.
std::string line_and_column(std::string_view text, size_t offset) {
  offset = std::min(offset, text.size());
  size_t line = 1;
  size_t start = 0;
  for (size_t i = 0; i < offset; ++i) {
    if (text[i] != '\n') continue;
    ++line;
    start = i + 1;
  }
  return fmt::format("line {}, column {}", line, offset - start + 1);
}

class TreeBuilder : public nlohmann::json_sax<Json> {
 public:
  TreeBuilder(std::string_view text, const JsonLimits& limits) : text_(text), limits_(limits) {}

  bool null() override { return add(Json(nullptr)); }
  bool boolean(bool value) override { return add(Json(value)); }
  bool number_integer(int64_t value) override { return add(Json(value)); }
  bool number_unsigned(uint64_t value) override { return add(Json(value)); }
  bool number_float(double value, const std::string&) override { return add(Json(value)); }
  bool string(std::string& value) override { return add(Json(std::move(value))); }
  bool binary(Json::binary_t&) override { return fail("binary data"); }
  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(std::string& name) override {
    auto [place, is_new] = stack_.back()->get_ref<Json::object_t&>().try_emplace(name);
    if (!is_new && limits_.reject_duplicate_keys) return fail(fmt::format("key '{}' occurs twice", name));
    target_ = &place->second;
    return true;
  }

  bool parse_error(size_t position, const std::string& last_token,
                   const nlohmann::json::exception& exception) override {
    // The library counts characters read, the last of them being the culprit.
    const size_t offset = position > 0 ? position - 1 : 0;
    const bool is_range = std::strstr(exception.what(), "out_of_range") != nullptr;
    const std::string token = last_token.size() > 40 ? last_token.substr(last_token.size() - 40) : last_token;
    problem_ = fmt::format("{} at {}, near '{}'", is_range ? "a number is out of range" : "not valid JSON",
                           line_and_column(text_, offset), printable(token));
    return false;
  }

  Json take() { return std::move(root_); }
  const std::string& problem() const { return problem_; }

  static std::string printable(std::string text) {
    for (char& c : text)
      if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) > 0x7E) c = '?';
    return text;
  }

 private:
  bool fail(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }

  // Where the next value goes: the root, the value of the last key, or a new end of the open array.
  Json* place(Json value) {
    if (++values_ > limits_.max_values) return nullptr;
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    *target_ = std::move(value);
    return target_;
  }

  bool add(Json value) { return place(std::move(value)) != nullptr || too_many(); }
  bool open(Json value) {
    if (static_cast<int>(stack_.size()) >= limits_.max_depth)
      return fail(fmt::format("nested deeper than {} levels", limits_.max_depth));
    Json* placed = place(std::move(value));
    if (placed == nullptr) return too_many();
    stack_.push_back(placed);
    return true;
  }
  bool close() {
    stack_.pop_back();
    return true;
  }
  bool too_many() { return fail(fmt::format("more than {} values", limits_.max_values)); }

  std::string_view text_;
  JsonLimits limits_;
  Json root_;
  Json* target_ = nullptr;
  // Pointers stay valid: while a container is open, its parent gets no other element.
  std::vector<Json*> stack_;
  uint64_t values_ = 0;
  std::string problem_;
};

}  // namespace

Result<Json> parse_json(std::string_view text, std::string_view where, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes)
    return make_error(ErrorCode::kInvalidData, "{}: expected at most {} bytes of JSON, found {}", where,
                      limits.max_bytes, text.size());
  // The parser below takes a NUL for the end of its input and skips a byte order mark; JSON has neither.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos)
    return make_error(ErrorCode::kInvalidData, "{}: not valid JSON: a NUL byte at {}", where,
                      line_and_column(text, nul));
  if (text.substr(0, 3) == "\xEF\xBB\xBF")
    return make_error(ErrorCode::kInvalidData, "{}: not valid JSON: starts with a byte order mark", where);
  TreeBuilder builder(text, limits);
  if (!Json::sax_parse(text.begin(), text.end(), &builder))
    return make_error(ErrorCode::kInvalidData, "{}: {}", where, builder.problem());
  return builder.take();
}

Result<std::string> read_text_file(const std::string& path, uint64_t max_bytes) {
  QD_TRY(const std::shared_ptr<const MappedFile> file, MappedFile::open(path));
  if (file->size() > max_bytes)
    return make_error(ErrorCode::kInvalidData, "{}: expected at most {} bytes, found {}", path, max_bytes,
                      file->size());
  std::string text(file->size(), '\0');
  QD_TRY_STATUS(file->copy_out(0, std::as_writable_bytes(std::span(text))));
  return text;
}

Result<Json> parse_json_file(const std::string& path, const JsonLimits& limits) {
  QD_TRY(const std::string text, read_text_file(path, limits.max_bytes));
  return parse_json(text, path, limits);
}

}  // namespace quadrille::formats

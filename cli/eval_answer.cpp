// SPDX-License-Identifier: Apache-2.0
// Scans by hand: linear in the text, whatever a model wrote.
#include "cli/eval_answer.h"

#include <cctype>
#include <optional>

namespace quadrille::cli {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

// Length of the digits (with ',' between them and one fraction) that begin at `at`; 0 when none.
size_t digits_length(std::string_view text, size_t at) {
  size_t end = at;
  while (end < text.size() &&
         (is_digit(text[end]) || (text[end] == ',' && end > at && end + 1 < text.size() && is_digit(text[end + 1])))) {
    ++end;
  }
  if (end == at) return 0;
  if (end + 1 < text.size() && text[end] == '.' && is_digit(text[end + 1])) {
    ++end;
    while (end < text.size() && is_digit(text[end])) ++end;
  }
  return end - at;
}

// The number at `at`, after blanks, a sign and a currency mark; "" when there is none.
std::string number_at(std::string_view text, size_t at) {
  while (at < text.size() && (text[at] == ' ' || text[at] == '\t' || text[at] == '*')) ++at;
  std::string sign;
  for (; at < text.size() && (text[at] == '-' || text[at] == '+' || text[at] == '$'); ++at) {
    if (text[at] == '-') sign = "-";
  }
  const size_t length = digits_length(text, at);
  return length == 0 ? "" : normalised_number(sign + std::string(text.substr(at, length)));
}

// The letter at `at` behind blanks, brackets, stars and colons, if it is an option and stands alone.
std::optional<char> letter_at(std::string_view text, size_t at, size_t num_options) {
  while (at < text.size() && (text[at] == ' ' || text[at] == ':' || text[at] == '*' || text[at] == '(')) ++at;
  if (at >= text.size() || text[at] < 'A' || static_cast<size_t>(text[at] - 'A') >= num_options) return std::nullopt;
  if (at + 1 < text.size() && is_word(text[at + 1])) return std::nullopt;
  return text[at];
}

}  // namespace

std::string normalised_number(std::string_view text) {
  std::string whole, fraction;
  bool negative = false, in_fraction = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (is_digit(c)) {
      (in_fraction ? fraction : whole) += c;
    } else if (c == '-' && whole.empty() && !in_fraction) {
      negative = true;
    } else if (c == '.' && !in_fraction) {
      in_fraction = true;
    } else if (c != ',' && c != '$' && c != '+' && c != ' ') {
      return "";
    }
  }
  if (whole.empty() && fraction.empty()) return "";
  whole.erase(0, std::min(whole.find_first_not_of('0'), whole.size()));
  fraction.erase(fraction.find_last_not_of('0') + 1);
  if (whole.empty()) whole = "0";
  const std::string number = fraction.empty() ? whole : whole + "." + fraction;
  return negative && number != "0" ? "-" + number : number;
}

ExtractedAnswer extract_number(std::string_view text) {
  for (size_t mark = text.rfind("####"); mark != std::string_view::npos;
       mark = mark == 0 ? std::string_view::npos : text.rfind("####", mark - 1)) {
    std::string number = number_at(text, mark + 4);
    if (!number.empty()) return {AnswerForm::kMarked, std::move(number)};
  }
  ExtractedAnswer last;
  for (size_t i = 0; i < text.size();) {
    const size_t length = digits_length(text, i);
    if (length == 0) {
      ++i;
      continue;
    }
    size_t before = i;
    if (before > 0 && text[before - 1] == '$') --before;
    bool negative = before > 0 && text[before - 1] == '-';
    if (negative && before > 1) negative = !is_word(text[before - 2]) && text[before - 2] != ')';
    last = {AnswerForm::kFallback, normalised_number((negative ? "-" : "") + std::string(text.substr(i, length)))};
    i += length;
  }
  return last;
}

ExtractedAnswer extract_letter(std::string_view text, size_t num_options) {
  constexpr std::string_view kMark = "answer is", kColon = "nswer:";
  for (size_t at = text.find(kMark); at != std::string_view::npos; at = text.find(kMark, at + 1)) {
    const auto letter = letter_at(text, at + kMark.size(), num_options);
    if (letter) return {AnswerForm::kMarked, std::string(1, *letter)};
  }
  ExtractedAnswer last;
  for (size_t at = text.find(kColon); at != std::string_view::npos; at = text.find(kColon, at + 1)) {
    const auto letter = letter_at(text, at + kColon.size(), num_options);
    if (letter) last = {AnswerForm::kFallback, std::string(1, *letter)};
  }
  if (last.form != AnswerForm::kNone) return last;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] < 'A' || static_cast<size_t>(text[i] - 'A') >= num_options) continue;
    const bool alone = (i == 0 || !is_word(text[i - 1])) && (i + 1 == text.size() || !is_word(text[i + 1]));
    if (alone) last = {AnswerForm::kFallback, std::string(1, text[i])};
  }
  return last;
}

}  // namespace quadrille::cli

// SPDX-License-Identifier: Apache-2.0
// Draws the bar, or prints a line each tenth of the work when nobody watches a terminal.
#include "cli/progress.h"

#include <algorithm>

namespace quadrille::cli {

Progress::Progress(Console& console, std::string label, std::string unit, bool quiet)
    : console_(console), label_(std::move(label)), unit_(std::move(unit)), quiet_(quiet), start_(Clock::now()) {
  last_ = start_;
}

Progress::~Progress() {
  finish();
}

void Progress::finish() {
  if (drawn_) console_.status_line("");
  drawn_ = false;
}

std::string Progress::text(int64_t done, int64_t total, double seconds) const {
  const std::string counts = unit_ == "bytes" ? fmt::format("{} of {}", bytes_text(static_cast<double>(done)),
                                                            bytes_text(static_cast<double>(total)))
                                              : fmt::format("{} of {} {}", done, total, unit_);
  if (done <= 0 || done >= total || seconds < 1) return counts;
  const double left = seconds / static_cast<double>(done) * static_cast<double>(total - done);
  return fmt::format("{}, {} left", counts, seconds_text(left));
}

void Progress::update(int64_t done, int64_t total, std::string_view detail) {
  if (quiet_ || total <= 0) return;
  const auto now = Clock::now();
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double since_last = std::chrono::duration<double>(now - last_).count();
  if (console_.stderr_is_terminal()) {
    if (drawn_ && done < total && since_last < 0.1) return;
    constexpr int64_t kWidth = 24;
    const auto filled = static_cast<size_t>(std::clamp<int64_t>(done * kWidth / total, 0, kWidth));
    std::string line = fmt::format("{} [{}{}] {}", label_, std::string(filled, '#'), std::string(kWidth - filled, '.'),
                                   text(done, total, seconds));
    if (!detail.empty()) line += fmt::format("  {}", detail);
    const auto columns = static_cast<size_t>(std::max(console_.stderr_columns() - 1, 20));
    if (line.size() > columns) line.resize(columns);
    console_.status_line(line);
    drawn_ = true;
    last_ = now;
    return;
  }
  // Elsewhere: each tenth, but no more than a line in two seconds, and none for work that is over at once.
  const int64_t tenth = done * 10 / total;
  if (tenth == last_tenth_ || since_last < 2) return;
  last_tenth_ = tenth;
  last_ = now;
  console_.note(fmt::format("{}: {}", label_, text(done, total, seconds)));
}

std::string bytes_text(double bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit < 4) {
    bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f} B", bytes)
                   : fmt::format("{:.{}f} {}", bytes, bytes < 100 ? 1 : 0, kUnits[unit]);
}

std::string seconds_text(double seconds) {
  if (seconds < 100) return fmt::format("{:.{}f} s", seconds, seconds < 10 ? 1 : 0);
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole % 3600 / 60);
}

}  // namespace quadrille::cli

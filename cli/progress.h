// SPDX-License-Identifier: Apache-2.0
// Progress of long work: a bar on a terminal, a plain line now and then elsewhere, nothing when quiet.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "cli/console.h"

namespace quadrille::cli {

class Progress {
 public:
  // `label` says what is going on ("quantize"); work is counted in `unit` ("problems", or "bytes", shown in MiB).
  Progress(Console& console, std::string label, std::string unit, bool quiet);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `detail` is shown behind the numbers on a terminal. Cheap: draws at most ten times a second.
  void update(int64_t done, int64_t total, std::string_view detail = "");
  // Wipes the bar.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  std::string text(int64_t done, int64_t total, double seconds) const;

  Console& console_;
  std::string label_, unit_;
  bool quiet_;
  bool drawn_ = false;
  Clock::time_point start_, last_;
  int64_t last_tenth_ = 0;
};

// "1.5 GiB", "310 KiB", "17 B"
std::string bytes_text(double bytes);
// "4 s", "3 min 05 s"
std::string seconds_text(double seconds);

}  // namespace quadrille::cli

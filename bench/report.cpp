// SPDX-License-Identifier: Apache-2.0
#include "bench/report.h"

#include <fmt/format.h>

namespace quadrille::bench {
namespace {

double percent(double part, double whole) {
  return whole > 0 ? 100 * part / whole : 0;
}

}  // namespace

Report::Report(const std::string& json_file) : wants_json_(!json_file.empty()) {
  if (wants_json_) json_ = std::fopen(json_file.c_str(), "w");
}

Report::~Report() {
  if (json_ != nullptr) std::fclose(json_);
}

void Report::heading(const std::string& text) {
  fmt::print("\n{}\n{:<42} {:<22} {:>9} {:>6} {:>6} {:>6} {:>8} {:>8} {:>6} {:>7} {:<6} {:>7}\n", text, "", "", "ms",
             "GB/s", "of", "%", "GFLOP/s", "of", "%", "% floor", "bound", "x time");
}

void Report::line(const Line& line) {
  const double bytes = line.work.bytes / line.seconds, operations = line.work.operations / line.seconds;
  const std::string bound = bound_name(bound_of(line.work, line.limits));
  fmt::print("{:<42} {:<22} {:>9.3f} {:>6.1f} {:>6.1f} {:>6.1f} {:>8.1f} {:>8.1f} {:>6.1f} {:>7.1f} {:<6} {:>7}\n",
             line.product, line.size, line.seconds * 1e3, bytes * 1e-9, line.limits.read * 1e-9,
             percent(bytes, line.limits.read), operations * 1e-9, line.limits.dot * 1e-9,
             percent(operations, line.limits.dot), 100 * line.fraction, bound,
             line.times_base > 0 ? fmt::format("{:.2f}", line.times_base) : "");
  std::fflush(stdout);
  if (json_ == nullptr) return;
  fmt::print(json_,
             "{{\"table\": \"{}\", \"product\": \"{}\", \"size\": \"{}\", \"threads\": {}, \"seconds\": {:.9g}, "
             "\"bytes\": {:.9g}, \"operations\": {:.9g}, \"weights\": {:.9g}, \"read_ceiling\": {:.6g}, "
             "\"dot_ceiling\": {:.6g}, \"decode_ceiling\": {:.6g}, \"floor_fraction\": {:.5g}, \"bound\": \"{}\", "
             "\"times_base\": {:.5g}}}\n",
             line.table, line.product, line.size, line.threads, line.seconds, line.work.bytes, line.work.operations,
             line.work.weights, line.limits.read, line.limits.dot, line.limits.decode, line.fraction, bound,
             line.times_base);
}

void Report::require(const Requirement& requirement) {
  requirements_.push_back(requirement);
}

int Report::requirements() {
  if (requirements_.empty()) return 0;
  int missed = 0;
  fmt::print("\n{:<96} {:>9} {:>8}\n", "requirement", "target", "reached");
  for (const Requirement& r : requirements_) {
    missed += r.passes() ? 0 : 1;
    fmt::print("{:<96} {} {:>6.1f} {:>8.1f}  {}\n", r.what, r.at_most ? "<=" : ">=", 100 * r.target, 100 * r.reached,
               r.passes() ? "pass" : "FAIL");
    if (json_ == nullptr) continue;
    fmt::print(json_,
               "{{\"requirement\": \"{}\", \"target\": {:.5g}, \"reached\": {:.5g}, \"at_most\": {}, \"pass\": {}}}\n",
               r.what, r.target, r.reached, r.at_most, r.passes());
  }
  fmt::print("{} of {} reached\n", requirements_.size() - static_cast<size_t>(missed), requirements_.size());
  return missed;
}

}  // namespace quadrille::bench

// SPDX-License-Identifier: Apache-2.0
#include "cli/load_report.h"

#include <time.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "device/link_rate.h"

namespace quadrille::cli {

double seconds_since_process_start() {
  // Field 22 of the line, in ticks since the system started; the name in parentheses may hold anything.
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(line.substr(name_end + 1));
  std::string skipped;
  for (int field = 3; field < 22; ++field) fields >> skipped;
  double ticks = 0;
  timespec now{};
  if (!(fields >> ticks) || ::clock_gettime(CLOCK_BOOTTIME, &now) != 0) return 0;
  const double seconds = static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
  return seconds - ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

Status print_load_report(Console& console, const model::DeviceModel& model, double ready_seconds) {
  const model::DeviceLoadTimes times = model.load_times();
  QD_TRY(const double link, device::host_to_device_rate());
  const double rate = times.copy_seconds > 0 ? static_cast<double>(times.bytes_copied) / times.copy_seconds : 0;
  console.note(fmt::format("load: {:.3f} GB to the GPU in {:.3f} s: {:.1f} GB/s, {:.0f} % of the link's {:.1f} GB/s",
                           static_cast<double>(times.bytes_copied) * 1e-9, times.copy_seconds, rate * 1e-9,
                           100 * rate / link, link * 1e-9));
  console.note(fmt::format("load: threads read {:.2f} s, enqueued {:.2f} s, waited for copies {:.2f} s",
                           times.slots.fill, times.slots.send, times.slots.wait));
  console.note(fmt::format(
      "load: GPU awake {:.3f} s, folder read {:.3f} s (at once); memory {:.3f} s; copies {:.3f} s; cache and tables "
      "{:.3f} s; together {:.3f} s",
      times.gpu_seconds, times.folder_seconds, times.memory_seconds, times.copy_seconds, times.finish_seconds,
      times.total_seconds));
  console.note(fmt::format("load: ready {:.2f} s after the start of the process", ready_seconds));
  return {};
}

}  // namespace quadrille::cli

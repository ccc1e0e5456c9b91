// SPDX-License-Identifier: Apache-2.0
// Warnings and notes go to a sink that the host program sets; the library itself never prints.
#pragma once

#include <functional>
#include <string_view>

namespace quadrille {

enum class LogLevel { kDebug, kInfo, kWarning };
using LogSink = std::function<void(LogLevel, std::string_view)>;

// A sink that drops everything: what a caller gets who passes none.
LogSink no_log();

}  // namespace quadrille

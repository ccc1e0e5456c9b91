// SPDX-License-Identifier: Apache-2.0
// quadrille version: what this build is, and which kernel tables run on this machine or why not.
#include <quadrille_build_info.h>

#include <memory>

#include "cli/commands.h"
#include "cli/json_output.h"
#include "cli/text_table.h"
#include "kernels/api/registry.h"

namespace quadrille::cli {
namespace {

const char* compiler_text() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown compiler";
#endif
}

nlohmann::json version_json() {
  nlohmann::json tables = nlohmann::json::array();
  for (const kernels::KernelTable* table : kernels::all_tables()) {
    const std::string reason = table->unavailable_reason();
    tables.push_back({{"name", table->name},
                      {"description", table->description},
                      {"available", reason.empty()},
                      {"reason", reason},
                      {"by_name_only", table->by_name_only},
                      {"round_f32", table->supports_round_f32}});
  }
  const auto best = kernels::select_table("");
  return {{"version", QD_BUILD_VERSION}, {"commit", QD_BUILD_COMMIT},     {"compiler", compiler_text()},
          {"build_type", QD_BUILD_TYPE}, {"sanitize", QD_BUILD_SANITIZE}, {"default_table", best ? (*best)->name : ""},
          {"tables", std::move(tables)}};
}

Status run_version(Console& console, bool as_json) {
  const nlohmann::json info = version_json();
  if (as_json) {
    console.print("{}\n", json_text(info));
    return {};
  }
  console.print("quadrille {} (commit {}), {}, {}\n\n", QD_BUILD_VERSION, QD_BUILD_COMMIT, compiler_text(),
                QD_BUILD_TYPE);
  TextTable table({"table", "runs here", "what it is"});
  for (const auto& entry : info["tables"]) {
    const auto name = entry["name"].get<std::string>();
    std::string runs = entry["available"].get<bool>() ? "yes" : "no: " + entry["reason"].get<std::string>();
    if (name == info["default_table"].get<std::string>()) runs += ", default";
    table.add_row({name, std::move(runs), entry["description"].get<std::string>()});
  }
  console.write(table.text());
  return {};
}

}  // namespace

void add_version(CLI::App& program, std::vector<Command>& commands) {
  auto* app = program.add_subcommand("version", "Version, commit, compiler, and the kernel tables of this machine");
  auto as_json = std::make_shared<bool>(false);
  app->add_flag("--json", *as_json, "Print JSON");
  commands.push_back({app, [as_json](Console& console) { return run_version(console, *as_json); }});
}

}  // namespace quadrille::cli

// SPDX-License-Identifier: Apache-2.0
// Knows the commands by name only; everything a command does stands in its own file.
#include "cli/program.h"

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/signals.h"

namespace quadrille::cli {
namespace {

void add_all(CLI::App& program, std::vector<Command>& commands) {
  add_run(program, commands);
  add_chat(program, commands);
  add_inspect(program, commands);
  add_plan(program, commands);
  add_quantize(program, commands);
  add_prepare(program, commands);
  add_make_model(program, commands);
  add_eval(program, commands);
  add_bench(program, commands);
  add_logits(program, commands);
  add_tokenizer_commands(program, commands);
  add_layer(program, commands);
  add_verify(program, commands);
  add_version(program, commands);
}

// Help goes to stdout with code 0; wrong usage to stderr with code 2.
int report_parse(Console& console, const CLI::App& program, const CLI::ParseError& error, const char* first) {
  if (error.get_exit_code() == 0) {
    const auto chosen = program.get_subcommands();
    console.write(chosen.empty() ? program.help() : chosen.front()->help());
    return console.finish() ? 0 : kExitFailure;
  }
  const auto chosen = program.get_subcommands();
  const bool is_unknown = chosen.empty() && first != nullptr && first[0] != '-';
  console.error(is_unknown ? fmt::format("no command is named '{}'", first) : std::string(error.what()));
  console.note(fmt::format("Run '{}{} --help' for what there is.", program.get_name(),
                           chosen.empty() ? "" : " " + chosen.front()->get_name()));
  return kExitUsage;
}

int report(Console& console, const Status& status) {
  const Status written = console.finish();
  if (!status && !(console.closed() && status.error().code == ErrorCode::kCancelled)) {
    console.error(status.error().message);
    // Also where the signal shows as another error: a call that it interrupted, a rank that ended because of it.
    return interrupted() ? kExitInterrupted : kExitFailure;
  }
  if (!written) {
    console.error(written.error().message);
    return kExitFailure;
  }
  return 0;
}

}  // namespace

int run_program(int argc, char** argv) {
  install_signal_handlers();
  Console console;
  CLI::App program("Mixture-of-Experts language models with 4-bit weights and FP8 activations", "quadrille");
  program.require_subcommand(1);
  program.get_formatter()->column_width(34);
  std::vector<Command> commands;
  add_all(program, commands);
  try {
    program.parse(argc, argv);
    for (const Command& command : commands) {
      if (command.app->parsed()) return report(console, command.run(console));
    }
    return kExitUsage;
  } catch (const CLI::ParseError& error) {
    return report_parse(console, program, error, argc > 1 ? argv[1] : nullptr);
  }
}

}  // namespace quadrille::cli

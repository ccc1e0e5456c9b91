// SPDX-License-Identifier: Apache-2.0
// The commands of the program: each add_... declares a subcommand and how it runs. Called by program.cpp alone.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <vector>

#include "cli/console.h"
#include "core/result.h"

namespace quadrille::cli {

struct Command {
  CLI::App* app = nullptr;
  // Runs after a successful parse. An error becomes one line on stderr and exit code 1 (130 after Ctrl-C).
  // CLI::ValidationError is the way to say that options do not fit together: exit code 2.
  std::function<Status(Console&)> run;
};

void add_run(CLI::App& program, std::vector<Command>& commands);
void add_chat(CLI::App& program, std::vector<Command>& commands);
void add_inspect(CLI::App& program, std::vector<Command>& commands);
void add_plan(CLI::App& program, std::vector<Command>& commands);
void add_quantize(CLI::App& program, std::vector<Command>& commands);
void add_make_model(CLI::App& program, std::vector<Command>& commands);
void add_prepare(CLI::App& program, std::vector<Command>& commands);
void add_eval(CLI::App& program, std::vector<Command>& commands);
void add_bench(CLI::App& program, std::vector<Command>& commands);
void add_version(CLI::App& program, std::vector<Command>& commands);
void add_logits(CLI::App& program, std::vector<Command>& commands);
void add_tokenizer_commands(CLI::App& program, std::vector<Command>& commands);  // tokenize, detokenize, template
void add_layer(CLI::App& program, std::vector<Command>& commands);
void add_verify(CLI::App& program, std::vector<Command>& commands);

}  // namespace quadrille::cli

// SPDX-License-Identifier: Apache-2.0
// The program's ranks around a model of which one rank fails on purpose: its own loader, engine and way of ending, with
// a Forward in between that fails where it is told. Started by lost_rank_test.
//   rank_fault MODEL TP load|prefill|decode RANK error|throw|no_memory waiting|blocked
// blocked: the other ranks sleep outside of any collective when it happens.
#include <cstdio>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <thread>

#include "cli/generate.h"
#include "cli/load_model.h"
#include "cli/program.h"
#include "cli/ranks.h"
#include "cli/signals.h"

namespace {

using namespace quadrille;
using parallel::Phase;

struct Fault {
  std::string phase;
  int rank = 0;
  std::string how;
  bool blocked = false;
};

Status fail(const std::string& how) {
  if (how == "throw") throw std::runtime_error("a failure on purpose");
  if (how == "no_memory") throw std::bad_alloc();
  return make_error(ErrorCode::kIo, "an error on purpose");
}

// What happens on this rank when `phase` has come.
Status reach(parallel::Communicator& ranks, Phase phase, const Fault& fault) {
  ranks.set_phase(phase);
  if (fault.phase != parallel::phase_name(phase)) return {};
  if (ranks.rank() == fault.rank) {
    if (fault.blocked) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    return fail(fault.how);
  }
  if (fault.blocked) std::this_thread::sleep_for(std::chrono::seconds(120));
  return {};
}

class FailingForward final : public model::Forward {
 public:
  FailingForward(model::Forward& model, parallel::Communicator& ranks, const Fault& fault)
      : model_(model), ranks_(ranks), fault_(fault) {}
  int64_t vocab_size() const override { return model_.vocab_size(); }
  int64_t max_positions() const override { return model_.max_positions(); }
  int64_t num_pages() const override { return model_.num_pages(); }
  Status run(const model::Step& step, std::span<float> logits) override {
    const bool is_decode = step.logit_rows.size() == step.ids.size();
    QD_TRY_STATUS(reach(ranks_, is_decode ? Phase::kDecode : Phase::kPrefill, fault_));
    return model_.run(step, logits);
  }

 private:
  model::Forward& model_;
  parallel::Communicator& ranks_;
  const Fault& fault_;
};

Status run(cli::Console& console, const cli::ModelOptions& options, const Fault& fault) {
  QD_TRY_STATUS(reach(*options.ranks, Phase::kLoad, fault));
  QD_TRY(const cli::LoadedModel loaded, cli::load_model(console, options, 128));
  FailingForward model(*loaded.model, *options.ranks, fault);
  engine::Engine engine(model, {});
  engine::Request request;
  request.prompt = {5, 6, 7, 8, 9};
  request.max_tokens = 20;
  request.ignore_stop_ids = true;
  QD_TRY(const cli::Answer answer, cli::generate(engine, std::move(request), {}, loaded.ranks));
  console.print("{} tokens\n", answer.tokens.size());
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) {
    std::fprintf(stderr, "usage: rank_fault MODEL TP load|prefill|decode RANK error|throw|no_memory waiting|blocked\n");
    return cli::kExitUsage;
  }
  cli::install_signal_handlers();
  cli::Console console;
  cli::ModelOptions options;
  options.folder = argv[1];
  options.tp = std::atoi(argv[2]);
  options.threads = options.tp;
  options.quiet = true;
  const Fault fault{argv[3], std::atoi(argv[4]), argv[5], std::string(argv[6]) == "blocked"};
  const Status done = cli::run_on_ranks(
      console, options, [&](cli::Console& own, const cli::ModelOptions& rank) { return run(own, rank, fault); });
  const Status written = console.finish();
  if (done && written) return 0;
  console.error(done ? written.error().message : done.error().message);
  return cli::kExitFailure;
}

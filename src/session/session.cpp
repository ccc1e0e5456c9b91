// SPDX-License-Identifier: Apache-2.0
// One thread owns the model from load to end: a GPU's context, the pool and the ranks are its own. Callers see the
// engine, which takes them from any thread.
#include "session/session.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "parallel/thread_group.h"
#include "session/folder_json.h"
#include "session/load_rank.h"
#include "session/names.h"
#include "session/ranked_model.h"

namespace quadrille::session {
namespace {

using engine::FinishReason;

nlohmann::json memory_json(const model::MemoryUse& memory) {
  return {{"weight_bytes", memory.weight_bytes},   {"expert_bytes", memory.expert_bytes},
          {"cache_bytes", memory.cache_bytes},     {"position_bytes", memory.position_bytes},
          {"scratch_bytes", memory.scratch_bytes}, {"bytes_read_per_token", memory.bytes_read_per_token}};
}

// A folder without a tokenizer has ids alone; one whose tokenizer is broken is an error.
Result<std::optional<TextModel>> load_text(const std::string& folder) {
  auto text = TextModel::load(folder);
  if (text) return std::optional<TextModel>(std::move(*text));
  if (text.error().code == ErrorCode::kNotFound) return std::optional<TextModel>();
  return text.error();
}

}  // namespace

class Session::Impl {
 public:
  explicit Impl(const SessionOptions& options) : options_(options), calls_(std::max(options.tp, 1)) {}

  Status start(const Watch& watch) {
    QD_TRY(text_, load_text(options_.folder));
    thread_ = thread_without_signals([this] { live(); });
    QD_TRY_STATUS(loading_.wait(watch));
    if (!*loading_.cancelled()) return {};
    return make_error(ErrorCode::kCancelled, "{}: the load was cancelled", options_.folder);
  }

  ~Impl() {
    loading_.cancel();  // ends a step as well
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      stopped_.notify_all();
      if (engine_) engine_->stop_waiting();
    }
    if (thread_.joinable()) thread_.join();
  }

  Result<engine::RequestId> submit(engine::Request request) {
    if (const auto failed = failure()) return *failed;
    return engine_->submit(std::move(request));
  }

  Result<engine::Update> poll(engine::RequestId id) {
    const auto failed = failure();  // asked first: what was handed over before it is polled first
    auto update = engine_->poll(id);
    if (!failed || !update || update->finish != FinishReason::kNone) return update;
    update->finish = FinishReason::kError;
    update->error = *failed;
    return update;
  }

  void wait(std::span<const engine::RequestId> ids, double seconds) {
    constexpr double kSlice = 0.1;  // a failure wakes nobody
    for (; seconds > 0 && !failure(); seconds -= kSlice) {
      if (engine_->wait_for_update(ids, std::min(seconds, kSlice))) return;
    }
  }

  Status logits(std::vector<int32_t> ids, std::span<float> out, const Watch& watch);

  const SessionOptions options_;
  std::optional<TextModel> text_;
  // From the end of the load on.
  std::unique_ptr<engine::Engine> engine_;
  int64_t vocab_size_ = 0, max_positions_ = 0;
  std::vector<int32_t> stop_ids_;
  nlohmann::json description_;

 private:
  void live() {
    const Status ended = without_exceptions([this]() -> Status {
      if (options_.tp == 1) return lead(nullptr);
      return parallel::run_rank_threads(options_.tp, [this](parallel::Communicator& ranks) {
        return ranks.rank() == 0 ? lead(&ranks) : follow(ranks);
      });
    });
    loading_.finish(ended);  // says something where the load failed
  }

  Status lead(parallel::Communicator* ranks);
  Status follow(parallel::Communicator& ranks);
  Status serve();
  void describe(const model::AnyModel& model, int threads);

  bool stopping() {
    const std::lock_guard lock(mutex_);
    return stop_;
  }
  std::optional<Error> failure() {
    const std::lock_guard lock(mutex_);
    return failure_;
  }

  WatchedWork loading_;
  RankCalls calls_;
  std::mutex mutex_;
  std::condition_variable stopped_;
  bool stop_ = false;
  std::optional<Error> failure_;
  std::jthread thread_;
};

// Rank 0, or the only one: load, serve, and stay until nobody asks any more.
Status Session::Impl::lead(parallel::Communicator* ranks) {
  struct Release {
    RankCalls& calls;
    ~Release() { calls.stop(); }
  };
  QD_TRY(const LoadedRank loaded, load_rank(options_, ranks, loading_));
  if (ranks != nullptr) QD_TRY_STATUS(ranks->barrier());
  const Release release{calls_};
  std::optional<RankedModel> ranked;
  if (ranks != nullptr) ranked.emplace(*ranks, *loaded.model, calls_);
  model::Forward& forward = ranked ? static_cast<model::Forward&>(*ranked) : *loaded.model;
  describe(*loaded.model, loaded.pool->num_threads());
  auto engine = std::make_unique<engine::Engine>(forward, options_.engine,
                                                 text_ ? text_->text_streams() : engine::TextStreamFactory());
  {
    const std::lock_guard lock(mutex_);
    engine_ = std::move(engine);
  }
  loading_.finish({});
  const Status served = without_exceptions([this] { return serve(); });
  if (!served && ranks != nullptr) ranks->fail(served.error().message);
  std::unique_lock lock(mutex_);
  if (!served) failure_ = served.error();
  stopped_.wait(lock, [this] { return stop_; });
  engine_.reset();  // on this thread, before the model: it waits for steps on their way
  return served;
}

Status Session::Impl::follow(parallel::Communicator& ranks) {
  struct Leave {
    RankCalls& calls;
    int rank;
    ~Leave() { calls.leave(rank); }
  } const leave{calls_, ranks.rank()};
  QD_TRY(const LoadedRank loaded, load_rank(options_, &ranks, loading_));
  QD_TRY_STATUS(ranks.barrier());
  return calls_.serve(ranks.rank(), *loaded.model);
}

// Steps until the session ends. An error of a step has ended its requests, and one rank alone goes on; several are out
// of step then.
Status Session::Impl::serve() {
  constexpr double kLong = 3600;
  while (!stopping()) {
    const Result<bool> stepped = engine_->step();
    if (!stepped && options_.tp > 1) return stepped.error();
    if (stepped && !*stepped) engine_->wait_for_work(kLong);
  }
  return {};
}

void Session::Impl::describe(const model::AnyModel& model, int threads) {
  const int64_t cached = model.num_pages() * model::kPagePositions;
  vocab_size_ = model.vocab_size();
  max_positions_ = std::min(model.max_positions(), cached);
  if (text_) {
    stop_ids_ = text_->stop_ids(model.config());
  } else {
    stop_ids_.assign(model.config().eos_token_ids.begin(), model.config().eos_token_ids.end());
  }
  description_ = {{"folder", options_.folder},
                  {"config", config_json(model.config())},
                  {"numerics", numerics_name(model.numerics())},
                  {"round", rounding_name(model.rounding())},
                  {"kernels", model.backend()},
                  {"device", options_.device},
                  {"threads", threads * options_.tp},
                  {"tp", options_.tp},
                  {"vocab_size", vocab_size_},
                  {"max_positions", max_positions_},
                  {"cache_positions", cached},
                  {"stop_ids", stop_ids_},
                  {"has_tokenizer", text_.has_value()},
                  {"memory", memory_json(model.memory())},
                  {"notes", model.notes()}};
}

Status Session::Impl::logits(std::vector<int32_t> ids, std::span<float> out, const Watch& watch) {
  const auto vocab = static_cast<size_t>(vocab_size_);
  const uint64_t total = ids.size();
  if (out.size() / vocab < total) {
    return make_error(ErrorCode::kInvalidArgument, "logits: {} tokens of {} logits need room for {} numbers, found {}",
                      total, vocab, total * vocab, out.size());
  }
  std::atomic<uint64_t> done{0};
  engine::Request request;
  request.prompt = std::move(ids);
  request.max_tokens = 0;
  request.prompt_logits = [&done, out](std::span<const float> row) {
    std::copy(row.begin(), row.end(), out.begin() + static_cast<std::ptrdiff_t>(done * row.size()));
    done += 1;
  };
  QD_TRY(const engine::RequestId id, submit(std::move(request)));
  constexpr double kBetween = 0.05;
  bool wanted = true;
  while (true) {
    if (watch && wanted && !watch("logits", done, total)) {
      wanted = false;
      engine_->cancel(id);
    }
    wait({&id, 1}, kBetween);
    QD_TRY(const engine::Update update, poll(id));
    if (update.finish == FinishReason::kError) return *update.error;
    if (update.finish == FinishReason::kCancelled) {
      return make_error(ErrorCode::kCancelled, "logits: cancelled after {} of {} tokens", done.load(), total);
    }
    if (update.finish != FinishReason::kNone) return {};
  }
}

Session::Session(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Session::~Session() = default;

Result<std::unique_ptr<Session>> Session::load(const SessionOptions& options, const Watch& watch) {
  QD_TRY_STATUS(check_session_options(options));
  auto impl = std::make_unique<Impl>(options);
  QD_TRY_STATUS(impl->start(watch));
  return std::unique_ptr<Session>(new Session(std::move(impl)));
}

const SessionOptions& Session::options() const {
  return impl_->options_;
}
const TextModel* Session::text() const {
  return impl_->text_ ? &*impl_->text_ : nullptr;
}
int64_t Session::vocab_size() const {
  return impl_->vocab_size_;
}
int64_t Session::max_positions() const {
  return impl_->max_positions_;
}
const std::vector<int32_t>& Session::stop_ids() const {
  return impl_->stop_ids_;
}
const nlohmann::json& Session::description() const {
  return impl_->description_;
}
engine::EngineMetrics Session::metrics() const {
  return impl_->engine_->metrics();
}
Result<engine::RequestId> Session::submit(engine::Request request) {
  return impl_->submit(std::move(request));
}
Result<engine::Update> Session::poll(engine::RequestId id) {
  return impl_->poll(id);
}
void Session::wait(std::span<const engine::RequestId> ids, double seconds) {
  impl_->wait(ids, seconds);
}
void Session::cancel(engine::RequestId id) {
  impl_->engine_->cancel(id);
}
Status Session::logits(std::vector<int32_t> ids, std::span<float> out, const Watch& watch) {
  return impl_->logits(std::move(ids), out, watch);
}

}  // namespace quadrille::session

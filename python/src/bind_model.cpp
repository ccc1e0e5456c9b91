// SPDX-License-Identifier: Apache-2.0
// quadrille._native.Model: a model in memory with its engine, the model functions of c_model.h. Python's side is
// python/quadrille/model.py and generation.py.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bind_tokenizer.h"
#include "bindings.h"
#include "owned_string.h"
#include "progress.h"
#include "quadrille/c_model.h"
#include "released_gil.h"
#include "tensor.h"

#include <unistd.h>

namespace quadrille::python {
namespace {

namespace nb = nanobind;

// id, log-probability, the best ids in its place
using Token = std::tuple<int32_t, float, std::vector<std::pair<int32_t, float>>>;

// qd_update as values of Python's own.
struct Update {
  std::string text;
  std::vector<Token> tokens, prompt_tokens;
  std::optional<std::string> finish;
  int64_t cached_prompt_tokens = 0;
};

std::vector<Token> tokens_of(const qd_token* tokens, int64_t count) {
  std::vector<Token> list;
  list.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    std::vector<std::pair<int32_t, float>> top;
    for (int64_t j = 0; j < tokens[i].num_top; ++j) top.emplace_back(tokens[i].top[j].id, tokens[i].top[j].logprob);
    list.emplace_back(tokens[i].id, tokens[i].logprob, std::move(top));
  }
  return list;
}

std::optional<std::string> finish_name(int32_t finish) {
  switch (finish) {
    case QD_FINISH_STOP:
      return "stop";
    case QD_FINISH_LENGTH:
      return "length";
    case QD_FINISH_CANCELLED:
      return "cancelled";
    default:
      return std::nullopt;
  }
}

// Every call holds the handle for as long as it runs, so close() from another thread frees nothing that is in use.
class Model {
 public:
  explicit Model(qd_model* handle)
      : process_(::getpid()), handle_(handle, [process = ::getpid()](qd_model* model) {
          if (::getpid() != process) return;  // a forked child: the model's threads are not here to be joined
          const ReleasedGil released;
          qd_model_free(model);
        }) {}

  static Model load(const std::string& folder, const std::string& device, const std::optional<std::string>& kernels,
                    const std::optional<std::string>& gpu_memory, int32_t numerics, int32_t rounding, int32_t threads,
                    int32_t tp, bool run_weight_only_as_fp8, bool round_scales, bool prefix_cache, int64_t cache_tokens,
                    int64_t max_sequences, int64_t max_batch_tokens, const nb::object& progress) {
    qd_model_desc desc;
    qd_model_desc_init(&desc);
    desc.folder = folder.c_str();
    desc.device = device.c_str();
    desc.kernels = kernels ? kernels->c_str() : nullptr;
    desc.gpu_memory = gpu_memory ? gpu_memory->c_str() : nullptr;
    desc.numerics = numerics;
    desc.rounding = rounding;
    desc.threads = threads;
    desc.tp = tp;
    desc.run_weight_only_as_fp8 = run_weight_only_as_fp8;
    desc.round_scales = round_scales;
    desc.prefix_cache = prefix_cache;
    desc.cache_tokens = cache_tokens;
    desc.max_sequences = max_sequences;
    desc.max_batch_tokens = max_batch_tokens;
    qd_model* handle = nullptr;
    try {
      run_with_progress(progress, [&](const qd_progress* on_progress, qd_error* error) {
        return qd_model_load(&desc, on_progress, &handle, error);
      });
    } catch (...) {
      // The last call of `progress` comes when the model stands: what it raises must not leave it behind.
      const ReleasedGil released;
      qd_model_free(handle);
      throw;
    }
    return Model(handle);
  }

  void close() { handle_.reset(); }
  bool closed() const { return handle_ == nullptr || ::getpid() != process_; }

  nb::str describe() const {
    const auto model = open();
    return text_of([&](qd_string* json, qd_error* error) { return qd_model_describe(model.get(), json, error); });
  }

  nb::str metrics() const {
    const auto model = open();
    return text_of([&](qd_string* json, qd_error* error) { return qd_model_metrics(model.get(), json, error); });
  }

  Tokenizer tokenizer() const {
    qd_tokenizer* tokenizer = nullptr;
    qd_error error = {};
    raise_error(qd_model_tokenizer(open().get(), &tokenizer, &error), error);
    return Tokenizer(tokenizer);
  }

  uint64_t submit(const std::vector<int32_t>& prompt, int64_t max_tokens, float temperature, int32_t top_k, float top_p,
                  float min_p, float repetition_penalty, uint64_t seed, const std::vector<std::string>& stop,
                  const std::vector<int32_t>& stop_ids, bool ignore_stop_ids, int32_t logprobs,
                  int32_t prompt_logprobs) {
    const auto model = open();
    drop_ended(model.get());
    std::vector<const char*> stop_strings;
    for (const std::string& text : stop) stop_strings.push_back(text.c_str());
    qd_request_desc desc;
    qd_request_desc_init(&desc);
    constexpr int32_t kNone = 0;
    desc.prompt = prompt.empty() ? &kNone : prompt.data();  // null would say that there is a text
    desc.num_prompt = static_cast<int64_t>(prompt.size());
    desc.max_tokens = max_tokens;
    desc.temperature = temperature;
    desc.top_k = top_k;
    desc.top_p = top_p;
    desc.min_p = min_p;
    desc.repetition_penalty = repetition_penalty;
    desc.seed = seed;
    desc.stop = stop_strings.data();
    desc.num_stop = stop_strings.size();
    desc.stop_ids = stop_ids.data();
    desc.num_stop_ids = stop_ids.size();
    desc.ignore_stop_ids = ignore_stop_ids;
    desc.logprobs = logprobs;
    desc.prompt_logprobs = prompt_logprobs;
    uint64_t id = 0;
    qd_error error = {};
    qd_result result = QD_OK;
    {
      const ReleasedGil released;
      result = qd_model_submit(model.get(), &desc, &id, &error);
    }
    raise_error(result, error);
    return id;
  }

  Update poll(uint64_t id) const {
    const auto model = open();
    qd_update* raw = nullptr;
    qd_error error = {};
    qd_result result = QD_OK;
    {
      const ReleasedGil released;
      result = qd_model_poll(model.get(), id, &raw, &error);
    }
    raise_error(result, error);
    const std::unique_ptr<qd_update, decltype(&qd_update_free)> update(raw, &qd_update_free);
    if (update->finish == QD_FINISH_ERROR) raise_error(update->error.code, update->error);
    return {.text = std::string(update->text, update->text_size),
            .tokens = tokens_of(update->tokens, update->num_tokens),
            .prompt_tokens = tokens_of(update->prompt_tokens, update->num_prompt_tokens),
            .finish = finish_name(update->finish),
            .cached_prompt_tokens = update->cached_prompt_tokens};
  }

  void wait(const std::vector<uint64_t>& ids, double seconds) const {
    const auto model = open();
    qd_error error = {};
    qd_result result = QD_OK;
    {
      const ReleasedGil released;
      result = qd_model_wait(model.get(), ids.data(), ids.size(), seconds, &error);
    }
    raise_error(result, error);
  }

  void cancel(uint64_t id) const {
    const auto model = open();
    qd_error error = {};
    qd_result result = QD_OK;
    {
      const ReleasedGil released;
      result = qd_model_cancel(model.get(), id, &error);
    }
    raise_error(result, error);
  }

  // Cancels a request that nobody will poll again; the model forgets it once it has ended.
  void forget(uint64_t id) {
    cancel(id);
    forgotten_.push_back(id);
    drop_ended(handle_.get());
  }

  Tensor logits(const std::vector<int32_t>& ids, int64_t vocab_size, const nb::object& progress) const {
    const auto model = open();
    const auto num_ids = static_cast<int64_t>(ids.size());
    Tensor out = Tensor::on_host(ElementType::kF32, {num_ids, vocab_size});
    run_with_progress(progress, [&](const qd_progress* on_progress, qd_error* error) {
      return qd_model_logits(model.get(), ids.data(), num_ids, out.as<float>(), static_cast<size_t>(out.num_elements()),
                             on_progress, error);
    });
    return out;
  }

 private:
  std::shared_ptr<qd_model> open() const {
    if (!handle_) {
      const ReleasedGil released;  // where the interpreter is ending, a daemon thread stays here
    }
    if (!handle_) throw nb::value_error("the model was closed; load it again");
    if (::getpid() != process_) {
      throw std::runtime_error("the model belongs to the process that forked this one; load it after the fork");
    }
    return handle_;
  }

  // A request stays known until its end was polled.
  void drop_ended(qd_model* model) {
    std::erase_if(forgotten_, [model](uint64_t id) {
      qd_update* update = nullptr;
      const bool known = qd_model_poll(model, id, &update, nullptr) == QD_OK;
      const bool ended = !known || update->finish != QD_FINISH_NONE;
      qd_update_free(update);
      return ended;
    });
  }

  pid_t process_;
  std::shared_ptr<qd_model> handle_;
  std::vector<uint64_t> forgotten_;
};

}  // namespace
}  // namespace quadrille::python

void bind_model(nanobind::module_& module) {
  namespace nb = nanobind;
  using quadrille::python::Model;
  using quadrille::python::Update;
  nb::class_<Update>(module, "Update", "qd_update: what is new of a request.", nb::is_final())
      .def_ro("text", &Update::text)
      .def_ro("tokens", &Update::tokens)
      .def_ro("prompt_tokens", &Update::prompt_tokens)
      .def_ro("finish", &Update::finish)
      .def_ro("cached_prompt_tokens", &Update::cached_prompt_tokens);
  nb::class_<Model>(module, "Model", "qd_model; quadrille.Model is what to use.", nb::is_final())
      .def_static("load", &Model::load, nb::arg("folder"), nb::kw_only(), nb::arg("device"), nb::arg("kernels").none(),
                  nb::arg("gpu_memory").none(), nb::arg("numerics"), nb::arg("rounding"), nb::arg("threads"),
                  nb::arg("tp"), nb::arg("run_weight_only_as_fp8"), nb::arg("round_scales"), nb::arg("prefix_cache"),
                  nb::arg("cache_tokens"), nb::arg("max_sequences"), nb::arg("max_batch_tokens"),
                  nb::arg("progress").none())
      .def("close", &Model::close)
      .def_prop_ro("closed", &Model::closed)
      .def("describe", &Model::describe)
      .def("metrics", &Model::metrics)
      .def("tokenizer", &Model::tokenizer)
      .def("submit", &Model::submit, nb::kw_only(), nb::arg("prompt"), nb::arg("max_tokens"), nb::arg("temperature"),
           nb::arg("top_k"), nb::arg("top_p"), nb::arg("min_p"), nb::arg("repetition_penalty"), nb::arg("seed"),
           nb::arg("stop"), nb::arg("stop_ids"), nb::arg("ignore_stop_ids"), nb::arg("logprobs"),
           nb::arg("prompt_logprobs"))
      .def("poll", &Model::poll, nb::arg("id"))
      .def("wait", &Model::wait, nb::arg("ids"), nb::arg("seconds"))
      .def("cancel", &Model::cancel, nb::arg("id"))
      .def("forget", &Model::forget, nb::arg("id"))
      .def("logits", &Model::logits, nb::arg("ids"), nb::arg("vocab_size"), nb::arg("progress").none());
}

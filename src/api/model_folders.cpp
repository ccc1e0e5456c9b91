// SPDX-License-Identifier: Apache-2.0
// What C callers ask of folders: what they hold, how they would be spread over GPUs, and new ones made of them.
#include "api/call.h"
#include "api/strings.h"
#include "api/watch.h"
#include "model/description.h"
#include "model/prepare_folder.h"
#include "plan/report.h"
#include "quantize/folder.h"
#include "session/folder_json.h"

using quadrille::Result;
using quadrille::Status;
using quadrille::api::check_choice;
using quadrille::api::check_given;
using quadrille::api::check_struct;
using quadrille::api::give;
using quadrille::api::guarded;
using quadrille::api::json_text;
using quadrille::api::watch_of;
namespace model = quadrille::model;
namespace plan = quadrille::plan;
namespace quantize = quadrille::quantize;
namespace session = quadrille::session;

namespace {

// An empty string, whatever comes of the call.
Status begin(qd_string* json) {
  QD_TRY_STATUS(check_given(json, "json"));
  *json = {};
  return {};
}

Result<plan::PlanQuestion> question_of(const qd_plan_desc& desc) {
  QD_TRY_STATUS(check_given(desc.model, "model"));
  QD_TRY_STATUS(check_given(desc.gpu, "gpu"));
  QD_TRY_STATUS(check_choice("attention", desc.attention, {QD_ATTENTION_DIVIDED, QD_ATTENTION_REPLICATED}));
  QD_TRY_STATUS(check_choice("group_size", desc.group_size, {-1, 0, 32, 64, 128}));
  plan::PlanQuestion question;
  question.model = desc.model;
  question.gpu = desc.gpu;
  question.gpus = desc.gpus;
  question.tp = desc.tp;
  question.ep = desc.ep;
  question.gpus_per_host = desc.gpus_per_host;
  question.decode_tokens = desc.decode_tokens;
  question.context = desc.context;
  question.prefill_tokens = desc.prefill_tokens;
  if (desc.group_size >= 0) question.group_size = desc.group_size;
  question.gpu_memory_gib = desc.gpu_memory_gib;
  question.attention =
      desc.attention == QD_ATTENTION_DIVIDED ? plan::AttentionOver::kDivided : plan::AttentionOver::kReplicated;
  return question;
}

Result<quantize::QuantizeOptions> options_of(const qd_quantize_desc& desc) {
  QD_TRY_STATUS(check_given(desc.in, "in"));
  QD_TRY_STATUS(check_given(desc.out, "out"));
  QD_TRY_STATUS(check_choice("group_size", desc.group_size, {0, 32, 64, 128}));
  QD_TRY_STATUS(check_choice("quotient", desc.quotient, {QD_QUOTIENT_F32, QD_QUOTIENT_BF16}));
  if (desc.num_ignore > 0) QD_TRY_STATUS(check_given(desc.ignore, "ignore"));
  quantize::QuantizeOptions options;
  options.group_size = desc.group_size;
  options.quotient = desc.quotient == QD_QUOTIENT_BF16 ? quantize::Quotient::kBf16 : quantize::Quotient::kF32;
  QD_TRY(options.threads, quadrille::api::threads_of(desc.threads));
  for (size_t i = 0; i < desc.num_ignore; ++i) {
    QD_TRY_STATUS(check_given(desc.ignore[i], "ignore"));
    options.ignore.emplace_back(desc.ignore[i]);
  }
  return options;
}

}  // namespace

extern "C" {

qd_result qd_describe_folder(const char* folder, qd_string* json, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(begin(json));
    QD_TRY_STATUS(check_given(folder, "folder"));
    QD_TRY(const model::ModelDescription description, model::describe_model(folder));
    give(json_text(session::description_json(description)), json);
    return {};
  });
}

qd_result qd_legal_tp(const char* name, int32_t max_ranks, qd_string* json, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(begin(json));
    QD_TRY_STATUS(check_given(name, "model"));
    QD_TRY(const auto verdicts, plan::legal_tp(name, max_ranks));
    give(json_text(session::verdicts_json(verdicts)), json);
    return {};
  });
}

qd_result qd_plan(const qd_plan_desc* desc, qd_string* json, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(begin(json));
    QD_TRY_STATUS(check_struct(desc, "qd_plan_desc"));
    QD_TRY(const plan::PlanQuestion question, question_of(*desc));
    QD_TRY(const plan::PlanReport report, plan::make_report(question));
    give(json_text(plan::plan_json(report)), json);
    return {};
  });
}

qd_result qd_quantize_folder(const qd_quantize_desc* desc, const qd_progress* progress, qd_string* report,
                             qd_error* error) {
  return guarded(error, [&]() -> Status {
    if (report != nullptr) *report = {};
    QD_TRY_STATUS(check_struct(desc, "qd_quantize_desc"));
    QD_TRY(const quantize::QuantizeOptions options, options_of(*desc));
    std::string text;
    QD_TRY_STATUS(session::run_watched(watch_of(progress), [&](session::WatchedWork& work) -> Status {
      const auto tell = [&work](const quantize::QuantizeProgress& at) {
        work.update(at.tensor, at.bytes_done, at.bytes_total);
      };
      QD_TRY(const auto made, quantize::quantize_folder(desc->in, desc->out, options, tell, work.cancelled()));
      text = json_text(session::quantize_json(desc->in, desc->out, options, made));
      return {};
    }));
    if (report != nullptr) give(text, report);
    return {};
  });
}

qd_result qd_prepare_folder(const qd_prepare_desc* desc, const qd_progress* progress, qd_string* report,
                            qd_error* error) {
  return guarded(error, [&]() -> Status {
    if (report != nullptr) *report = {};
    QD_TRY_STATUS(check_struct(desc, "qd_prepare_desc"));
    QD_TRY_STATUS(check_given(desc->in, "in"));
    QD_TRY_STATUS(check_given(desc->out, "out"));
    model::LoadOptions options;
    QD_TRY(options.numerics, quadrille::api::numerics_of(desc->numerics));
    options.run_weight_only_as_fp8 = desc->run_weight_only_as_fp8 != 0;
    options.round_scales = desc->round_scales != 0;
    QD_TRY(const int threads, quadrille::api::threads_of(desc->threads));
    std::string text;
    QD_TRY_STATUS(session::run_watched(watch_of(progress), [&](session::WatchedWork& work) -> Status {
      quadrille::ThreadPool pool(threads);
      options.pool = &pool;
      options.cancel = work.cancelled();
      options.progress = [&work](const model::LoadProgress& at) {
        work.update(at.module, at.bytes_done, at.bytes_total);
      };
      QD_TRY(const auto made, model::prepare_folder(desc->in, desc->out, options));
      text = json_text(session::prepare_json(desc->in, desc->out, options.numerics, made));
      return {};
    }));
    if (report != nullptr) give(text, report);
    return {};
  });
}

}  // extern "C"

// SPDX-License-Identifier: Apache-2.0
// Functions of c_model.h over model folders: describe, legal_tp, plan, quantize, prepare. Python's side is
// python/quadrille/folders.py.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "owned_string.h"
#include "progress.h"
#include "quadrille/c_model.h"

namespace quadrille::python {
namespace {

namespace nb = nanobind;

nb::str describe_folder(const std::string& folder) {
  return text_of([&](qd_string* json, qd_error* error) { return qd_describe_folder(folder.c_str(), json, error); });
}

nb::str legal_tp(const std::string& model, int32_t max_ranks) {
  return text_of([&](qd_string* json, qd_error* error) { return qd_legal_tp(model.c_str(), max_ranks, json, error); });
}

nb::str plan(const std::string& model, const std::string& gpu, int32_t gpus, int32_t tp, int32_t ep,
             int32_t gpus_per_host, int64_t decode_tokens, int64_t context, int64_t prefill_tokens, int64_t group_size,
             double gpu_memory_gib, bool replicated_attention) {
  qd_plan_desc desc;
  qd_plan_desc_init(&desc);
  desc.model = model.c_str();
  desc.gpu = gpu.c_str();
  desc.gpus = gpus;
  desc.tp = tp;
  desc.ep = ep;
  desc.gpus_per_host = gpus_per_host;
  desc.decode_tokens = decode_tokens;
  desc.context = context;
  desc.prefill_tokens = prefill_tokens;
  desc.group_size = group_size;
  desc.gpu_memory_gib = gpu_memory_gib;
  desc.attention = replicated_attention ? QD_ATTENTION_REPLICATED : QD_ATTENTION_DIVIDED;
  return text_of([&](qd_string* json, qd_error* error) { return qd_plan(&desc, json, error); });
}

nb::str quantize_folder(const std::string& in, const std::string& out, int64_t group_size, bool bf16_quotient,
                        const std::vector<std::string>& ignore, int32_t threads, const nb::object& progress) {
  std::vector<const char*> patterns;
  for (const std::string& pattern : ignore) patterns.push_back(pattern.c_str());
  qd_quantize_desc desc;
  qd_quantize_desc_init(&desc);
  desc.in = in.c_str();
  desc.out = out.c_str();
  desc.group_size = group_size;
  desc.quotient = bf16_quotient ? QD_QUOTIENT_BF16 : QD_QUOTIENT_F32;
  desc.threads = threads;
  desc.ignore = patterns.data();
  desc.num_ignore = patterns.size();
  OwnedString report;
  run_with_progress(progress, [&](const qd_progress* on_progress, qd_error* error) {
    return qd_quantize_folder(&desc, on_progress, &report.string, error);
  });
  return report.str();
}

nb::str prepare_folder(const std::string& in, const std::string& out, int32_t numerics, bool run_weight_only_as_fp8,
                       bool round_scales, int32_t threads, const nb::object& progress) {
  qd_prepare_desc desc;
  qd_prepare_desc_init(&desc);
  desc.in = in.c_str();
  desc.out = out.c_str();
  desc.numerics = numerics;
  desc.run_weight_only_as_fp8 = run_weight_only_as_fp8;
  desc.round_scales = round_scales;
  desc.threads = threads;
  OwnedString report;
  run_with_progress(progress, [&](const qd_progress* on_progress, qd_error* error) {
    return qd_prepare_folder(&desc, on_progress, &report.string, error);
  });
  return report.str();
}

}  // namespace
}  // namespace quadrille::python

void bind_folders(nanobind::module_& module) {
  namespace nb = nanobind;
  namespace qp = quadrille::python;
  module.def("describe_folder", &qp::describe_folder, nb::arg("folder"));
  module.def("legal_tp", &qp::legal_tp, nb::arg("model"), nb::arg("max_ranks"));
  module.def("plan", &qp::plan, nb::arg("model"), nb::kw_only(), nb::arg("gpu"), nb::arg("gpus"), nb::arg("tp"),
             nb::arg("ep"), nb::arg("gpus_per_host"), nb::arg("decode_tokens"), nb::arg("context"),
             nb::arg("prefill_tokens"), nb::arg("group_size"), nb::arg("gpu_memory_gib"),
             nb::arg("replicated_attention"));
  module.def("quantize_folder", &qp::quantize_folder, nb::arg("folder"), nb::arg("out"), nb::kw_only(),
             nb::arg("group_size"), nb::arg("bf16_quotient"), nb::arg("ignore"), nb::arg("threads"),
             nb::arg("progress").none());
  module.def("prepare_folder", &qp::prepare_folder, nb::arg("folder"), nb::arg("out"), nb::kw_only(),
             nb::arg("numerics"), nb::arg("run_weight_only_as_fp8"), nb::arg("round_scales"), nb::arg("threads"),
             nb::arg("progress").none());
}

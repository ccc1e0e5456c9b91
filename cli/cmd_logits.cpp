// SPDX-License-Identifier: Apache-2.0
// quadrille logits: token ids in, the logits of every position out, for whoever compares engines.
#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <span>

#include "cli/commands.h"
#include "cli/load_model.h"
#include "cli/progress.h"
#include "cli/rank_grid.h"
#include "cli/ranks.h"
#include "cli/signals.h"
#include "formats/json.h"
#include "formats/safetensors_writer.h"

namespace quadrille::cli {
namespace {

constexpr int64_t kChunk = 256;  // tokens a step; no bit depends on it

struct LogitsOptions {
  ModelOptions model;
  std::string ids, out;
};

using Sequences = std::vector<std::vector<int32_t>>;

// {"sequences": [[ids]...]}
Result<Sequences> read_sequences(const std::string& path) {
  QD_TRY(const formats::Json json, formats::parse_json_file(path));
  const bool has_list = json.is_object() && json.contains("sequences") && json["sequences"].is_array();
  if (!has_list) {
    return make_error(ErrorCode::kInvalidData, "{}: expected {{\"sequences\": [[id, ...], ...]}}, found '{}'", path,
                      formats::json_excerpt(json));
  }
  Sequences sequences;
  for (const formats::Json& list : json["sequences"]) {
    const size_t index = sequences.size();
    if (!list.is_array()) {
      return make_error(ErrorCode::kInvalidData, "{}: sequences[{}]: expected a list of token ids, found '{}'", path,
                        index, formats::json_excerpt(list));
    }
    std::vector<int32_t>& ids = sequences.emplace_back();
    for (const formats::Json& id : list) {
      const bool fits = id.is_number_integer() && id >= 0 && id <= 0x7fffffff;
      if (!fits) {
        return make_error(ErrorCode::kInvalidData, "{}: sequences[{}][{}]: expected a token id, found '{}'", path,
                          index, ids.size(), formats::json_excerpt(id));
      }
      ids.push_back(id.get<int32_t>());
    }
  }
  if (sequences.empty()) return make_error(ErrorCode::kInvalidData, "{}: 'sequences' is empty", path);
  return sequences;
}

Status check_sequences(const std::string& path, const Sequences& sequences, const model::AnyModel& model) {
  const int64_t limit = std::min(model.max_positions(), model.num_pages() * model::kPagePositions);
  for (size_t i = 0; i < sequences.size(); ++i) {
    const auto length = static_cast<int64_t>(sequences[i].size());
    if (length > limit) {
      return make_error(
          ErrorCode::kCapacity,
          "{}: sequences[{}] has {} tokens; the model takes {} positions and the cache {} (--cache-tokens)", path, i,
          length, model.max_positions(), model.num_pages() * model::kPagePositions);
    }
    for (size_t t = 0; t < sequences[i].size(); ++t) {
      if (sequences[i][t] >= model.vocab_size()) {
        return make_error(ErrorCode::kInvalidArgument, "{}: sequences[{}][{}] is {}; the vocabulary has {} tokens",
                          path, i, t, sequences[i][t], model.vocab_size());
      }
    }
  }
  return {};
}

// One sequence in chunks: its logits [tokens, vocab] are appended to tensor `name` (no writer: a rank above 0).
Status run_sequence(model::AnyModel& model, std::span<const int32_t> ids, const std::string& name,
                    formats::SafetensorsWriter* writer, parallel::Communicator* ranks) {
  std::vector<int32_t> pages(static_cast<size_t>(model.num_pages()));
  std::iota(pages.begin(), pages.end(), 0);
  std::vector<float> logits;
  for (size_t begin = 0; begin < ids.size(); begin += kChunk) {
    if (any_rank(ranks, interrupted())) return interrupted_error("logits");
    const size_t count = std::min<size_t>(kChunk, ids.size() - begin);
    std::vector<int32_t> positions(count), rows(count);
    const std::vector<int32_t> sequences(count, 0);
    std::iota(positions.begin(), positions.end(), static_cast<int32_t>(begin));
    std::iota(rows.begin(), rows.end(), 0);
    logits.resize(count * static_cast<size_t>(model.vocab_size()));
    const model::Step step{.ids = ids.subspan(begin, count),
                           .positions = positions,
                           .sequences = sequences,
                           .page_table = pages,
                           .page_table_stride = static_cast<int64_t>(pages.size()),
                           .logit_rows = rows};
    QD_TRY_STATUS(model.run(step, logits));
    if (writer != nullptr) QD_TRY_STATUS(writer->append(name, std::as_bytes(std::span(logits))));
  }
  return {};
}

Status run_logits(Console& console, const LogitsOptions& options) {
  QD_TRY(const Sequences sequences, read_sequences(options.ids));
  size_t longest = 1;
  int64_t total = 0;
  for (const auto& ids : sequences) {
    longest = std::max(longest, ids.size());
    total += static_cast<int64_t>(ids.size());
  }
  QD_TRY(LoadedModel loaded, load_model(console, options.model, static_cast<int64_t>(longest)));
  model::AnyModel& model = *loaded.model;
  QD_TRY_STATUS(check_sequences(options.ids, sequences, model));
  std::vector<formats::TensorDeclaration> tensors;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const auto tokens = static_cast<int64_t>(sequences[i].size());
    tensors.push_back({fmt::format("logits.{}", i), formats::DType::kF32, {tokens, model.vocab_size()}});
  }
  const std::map<std::string, std::string> metadata = {{"numerics", numerics_name(model.numerics())},
                                                       {"round", rounding_name(model.rounding())},
                                                       {"kernels", model.backend()}};
  std::optional<formats::SafetensorsWriter> writer;
  if (!console.muted()) {
    QD_TRY(formats::SafetensorsWriter created, formats::SafetensorsWriter::create(options.out, tensors, metadata));
    writer.emplace(std::move(created));
  }
  Progress progress(console, "logits", "tokens", options.model.quiet);
  int64_t done = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    progress.update(done, total);
    QD_TRY_STATUS(run_sequence(model, sequences[i], tensors[i].name, writer ? &*writer : nullptr, loaded.ranks));
    done += static_cast<int64_t>(sequences[i].size());
  }
  progress.finish();
  if (writer) QD_TRY_STATUS(writer->finish());
  console.print("{}: logits of {} sequences, {} tokens ({})\n", options.out, sequences.size(), total,
                settings_text(loaded));
  return {};
}

}  // namespace

void add_logits(CLI::App& program, std::vector<Command>& commands) {
  auto* app = program.add_subcommand("logits", "Logits of every position of given token sequences");
  auto options = std::make_shared<LogitsOptions>();
  add_model_options(*app, options->model);
  add_rank_options(*app, options->model);
  add_grid_options(*app, options->model);
  app->add_option("--ids", options->ids, "JSON: {\"sequences\": [[id, ...], ...]}")->required()->type_name("FILE");
  app->add_option("--out", options->out, "safetensors: logits.I, F32 [tokens, vocabulary]")
      ->required()
      ->type_name("FILE");
  commands.push_back({app, [options](Console& console) {
                        return run_on_ranks(console, options->model,
                                            [&](Console& own_console, const ModelOptions& model) {
                                              LogitsOptions own = *options;
                                              own.model = model;
                                              return run_logits(own_console, own);
                                            });
                      }});
}

}  // namespace quadrille::cli

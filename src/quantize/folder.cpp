// SPDX-License-Identifier: Apache-2.0
#include "quantize/folder.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <mutex>

#include "core/thread_pool.h"
#include "formats/checkpoint.h"
#include "quantize/folder_plan.h"
#include "quantize/partial_folder.h"

namespace quadrille::quantize {
namespace {

namespace fs = std::filesystem;
using formats::SafetensorsWriter;
using formats::TensorView;

constexpr uint64_t kCopyBytes = 16ull << 20;
constexpr int64_t kRowsPerPart = 16;

// Everything that one run carries along.
struct Run {
  const QuantizeOptions& options;
  const QuantizeProgressCallback& progress;
  const std::atomic<bool>* cancel;
  ThreadPool pool;
  QuantizeProgress state{};
  QuantizeReport report{};

  Status tick(uint64_t bytes) {
    state.bytes_done += bytes;
    if (progress) progress(state);
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed))
      return make_error(ErrorCode::kCancelled, "quantize was stopped; nothing was written");
    return {};
  }
};

Status copy_tensor(const TensorView& tensor, SafetensorsWriter& writer, Run& run) {
  std::vector<std::byte> buffer(std::min<uint64_t>(kCopyBytes, tensor.bytes.size()));
  for (uint64_t offset = 0; offset < tensor.bytes.size(); offset += buffer.size()) {
    const auto piece = std::span(buffer).first(std::min<uint64_t>(buffer.size(), tensor.bytes.size() - offset));
    QD_TRY_STATUS(tensor.copy_part(offset, piece));
    QD_TRY_STATUS(writer.append(tensor.name, piece));
    QD_TRY_STATUS(run.tick(piece.size()));
  }
  return {};
}

// The quantised form of one matrix while it is in memory.
struct MatrixResult {
  std::vector<int32_t> packed;   // [N, ceil(K/8)]
  std::vector<uint16_t> scales;  // [N, G] bf16 bits
  ErrorSums sums;
};

Result<MatrixResult> quantize_matrix(const TensorView& tensor, Run& run) {
  const int64_t n = tensor.shape[0];
  const int64_t k = tensor.shape[1];
  const int64_t group_size = run.options.group_size;
  const int64_t words = words_per_row(k);
  const int64_t groups = scales_per_row(k, group_size);
  const int64_t row_bytes = k * formats::dtype_bits(tensor.dtype) / 8;
  std::vector<std::byte> raw(tensor.bytes.size());
  QD_TRY_STATUS(tensor.copy_to(raw));
  MatrixResult result;
  result.packed.resize(static_cast<size_t>(n * words));
  result.scales.resize(static_cast<size_t>(n * groups));
  const int64_t parts = (n + kRowsPerPart - 1) / kRowsPerPart;
  std::vector<ErrorSums> sums(static_cast<size_t>(parts));  // added in order: the report does not depend on threads
  std::mutex mutex;
  std::pair<int64_t, int64_t> bad{n, 0};  // the first element that is not finite
  run.pool.run(parts, [&](int64_t part) {
    std::vector<float> x(static_cast<size_t>(k));
    std::vector<int8_t> codes(static_cast<size_t>(k));
    for (int64_t row = part * kRowsPerPart; row < std::min(n, (part + 1) * kRowsPerPart); ++row) {
      widen_row(raw.data() + row * row_bytes, tensor.dtype, k, x.data());
      if (const int64_t column = first_not_finite(x); column >= 0) {
        const std::scoped_lock lock(mutex);
        bad = std::min(bad, std::pair(row, column));
        return;
      }
      uint16_t* scales = result.scales.data() + row * groups;
      quantize_row(x, group_size, run.options.quotient, codes.data(), scales);
      pack_row(codes, result.packed.data() + row * words);
      sums[static_cast<size_t>(part)].add(row_error(x, codes.data(), scales, group_size));
    }
  });
  if (bad.first < n)
    return make_error(ErrorCode::kInvalidData, "{}: element [{}, {}] is not finite: expected finite weights",
                      tensor.where(), bad.first, bad.second);
  for (const ErrorSums& part : sums) result.sums.add(part);
  return result;
}

Status write_matrix(const PlannedTensor& planned, SafetensorsWriter& writer, Run& run) {
  const TensorView& tensor = *planned.source;
  QD_TRY(const MatrixResult result, quantize_matrix(tensor, run));
  QD_TRY_STATUS(writer.write(planned.module + ".weight_packed", std::as_bytes(std::span(result.packed))));
  QD_TRY_STATUS(writer.write(planned.module + ".weight_scale", std::as_bytes(std::span(result.scales))));
  QD_TRY_STATUS(writer.write(planned.module + ".weight_shape", std::as_bytes(std::span(tensor.shape))));
  run.report.errors.tensors.push_back({planned.module, kind_of_module(planned.module), tensor.shape, result.sums});
  return run.tick(tensor.bytes.size());
}

Status write_shard(const PlannedShard& shard, const std::map<std::string, std::string>& metadata,
                   const std::string& folder, Run& run) {
  QD_TRY(SafetensorsWriter writer, SafetensorsWriter::create(folder + "/" + shard.file, shard.declarations, metadata));
  for (const PlannedTensor& planned : shard.tensors) {
    run.state.tensor = planned.source->name;
    QD_TRY_STATUS(planned.is_quantized ? write_matrix(planned, writer, run)
                                       : copy_tensor(*planned.source, writer, run));
    ++run.state.tensors_done;
  }
  run.report.files.push_back(shard.file);
  return writer.finish();
}

Status write_index(const FolderPlan& plan, const std::string& folder, Run& run) {
  formats::Json map = formats::Json::object();
  for (const PlannedShard& shard : plan.shards)
    for (const auto& declaration : shard.declarations) map[declaration.name] = shard.file;
  const formats::Json index = {{"metadata", {{"total_size", plan.bytes_out}}}, {"weight_map", std::move(map)}};
  run.report.files.emplace_back("model.safetensors.index.json");
  return write_new_file(folder + "/model.safetensors.index.json", index.dump(2) + "\n");
}

Status copy_files(const FolderPlan& plan, const std::string& in, const std::string& folder, Run& run) {
  for (const std::string& name : plan.copied_files) {
    QD_TRY(const std::string text, formats::read_text_file(in + "/" + name, 256ull << 20));
    QD_TRY_STATUS(write_new_file(folder + "/" + name, text));
    run.report.files.push_back(name);
  }
  return {};
}

Status check_space(const FolderPlan& plan, const std::string& folder) {
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (!error && space.available < plan.bytes_out)
    return make_error(ErrorCode::kCapacity, "{}: expected {} bytes of free space, found {}", folder, plan.bytes_out,
                      space.available);
  return {};
}

}  // namespace

Result<QuantizeReport> quantize_folder(const std::string& in, const std::string& out, const QuantizeOptions& options,
                                       const QuantizeProgressCallback& progress, const std::atomic<bool>* cancel) {
  const auto start = std::chrono::steady_clock::now();
  QD_TRY_STATUS(check_group_size(0, options.group_size));
  QD_TRY(const formats::Json config, formats::parse_json_file(in + "/config.json"));
  QD_TRY(const formats::Checkpoint checkpoint, formats::Checkpoint::open(in, options.log));
  QD_TRY(const FolderPlan plan, plan_folder(checkpoint, config, options));

  QD_TRY(PartialFolder folder, PartialFolder::create(out));
  QD_TRY_STATUS(check_space(plan, folder.path()));
  Run run{.options = options, .progress = progress, .cancel = cancel, .pool = ThreadPool(options.threads)};
  run.state.tensors_total = plan.num_tensors;
  run.state.bytes_total = plan.bytes_in;
  QD_TRY_STATUS(run.tick(0));
  for (const PlannedShard& shard : plan.shards)
    QD_TRY_STATUS(write_shard(shard, checkpoint.shard_metadata(shard.file), folder.path(), run));
  if (checkpoint.is_sharded()) QD_TRY_STATUS(write_index(plan, folder.path(), run));
  QD_TRY_STATUS(copy_files(plan, in, folder.path(), run));
  QD_TRY_STATUS(write_new_file(folder.path() + "/config.json", plan.config.dump(2) + "\n"));
  QD_TRY_STATUS(folder.commit());

  run.report.files.emplace_back("config.json");
  std::sort(run.report.files.begin(), run.report.files.end());
  run.report.left_alone = plan.left_alone;
  run.report.bytes_in = plan.bytes_in;
  run.report.bytes_out = plan.bytes_out;
  run.report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return std::move(run.report);
}

}  // namespace quadrille::quantize

// SPDX-License-Identifier: Apache-2.0
// quantization_config of a compressed-tensors checkpoint: which modules are quantised and how. Whatever this engine
// does not run is refused here by name; the model loader asks decide() for each linear layer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "formats/json.h"

namespace quadrille::formats {

enum class QuantizationKind {
  kUnquantized,
  kW4A8,   // int4 symmetric weights, per-token dynamic e4m3 activations
  kW4A16,  // int4 symmetric weights, no activation quantisation: the loader refuses it or runs it as W4A8
};
enum class WeightFormat {
  kPackQuantized,  // NAME.weight_packed I32 [N, ceil(K/8)], uint4b8, low nibble first; .weight_scale; .weight_shape
  kIntQuantized,   // NAME.weight I8 [N, K], one byte a code; .weight_scale
};
const char* quantization_kind_name(QuantizationKind kind);  // "unquantized", "w4a8", "w4a16"
const char* weight_format_name(WeightFormat format);        // "pack-quantized", "int-quantized"

struct QuantizationDecision {
  QuantizationKind kind = QuantizationKind::kUnquantized;
  int64_t group_size = 0;  // 32, 64, 128; 0 = one scale a channel
  WeightFormat format = WeightFormat::kPackQuantized;
  std::string rule;  // what made it: "ignore 're:.*mlp.gate$'", "group_0 target 'Linear'", "no target matches"
};

// One target or ignore entry: 're:REGEX' (Python's re.match: anchored at the start, not at the end), a full module
// path, or a class name. Matching is bounded in steps and memory.
class ModulePattern {
 public:
  // Errors: kInvalidData for a regular expression that does not compile, with place and reason.
  static Result<ModulePattern> compile(const std::string& text, std::string_view where);
  ModulePattern(ModulePattern&&) noexcept;
  ModulePattern& operator=(ModulePattern&&) noexcept;
  ~ModulePattern();

  const std::string& text() const { return text_; }
  bool is_regex() const { return regex_ != nullptr; }
  // Matches the module's path (regex or exact), not its class. Errors: kInvalidData when the bound of work is reached.
  Result<bool> matches_path(std::string_view module_path) const;
  bool matches_class(std::string_view module_class) const { return !is_regex() && text_ == module_class; }

 private:
  struct Regex;
  ModulePattern();
  std::string text_;
  std::unique_ptr<Regex> regex_;
};

class QuantizationConfig {
 public:
  // `json` is the value of quantization_config, `where` heads errors (the path of config.json). Errors: kInvalidData
  // for what breaks the format (unknown keys of a group, contradictions); kUnsupported, by name and with the legal
  // values, for what is well formed and not run: other methods and formats, transforms, sparsity, KV-cache schemes,
  // activation order, asymmetric weights, output activations, other widths and types.
  static Result<QuantizationConfig> parse(const Json& json, const std::string& where);
  QuantizationConfig(QuantizationConfig&&) noexcept;
  QuantizationConfig& operator=(QuantizationConfig&&) noexcept;
  ~QuantizationConfig();

  // `module_path` is the tensor name without ".weight" ("model.layers.0.mlp.gate"). ignore beats targets; an exact
  // path beats a regex, a regex beats a class name. Errors: kInvalidData when two groups of the same rank decide
  // differently, or when a pattern needs too much work. Safe to call from many threads.
  Result<QuantizationDecision> decide(std::string_view module_path, std::string_view module_class = "Linear") const;

  // "pack-quantized", "int-quantized" or "mixed-precision": what the file says.
  const std::string& format() const;
  const std::string& version() const;  // of the library that wrote it, or ""

 private:
  struct State;
  QuantizationConfig();
  std::unique_ptr<State> state_;
};

}  // namespace quadrille::formats

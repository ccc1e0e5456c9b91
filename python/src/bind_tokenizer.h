// SPDX-License-Identifier: Apache-2.0
// A tokenizer handle as the extension holds it; a model gives out one, too (bind_model.cpp).
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "quadrille/c_model.h"

namespace quadrille::python {

class Tokenizer {
 public:
  explicit Tokenizer(qd_tokenizer* handle);  // takes it
  static Tokenizer load(const std::string& folder);

  nanobind::str describe() const;
  std::vector<int32_t> encode(const std::string& text, bool add_special, bool parse_special) const;
  nanobind::str decode(const std::vector<int32_t>& ids, bool skip_special) const;
  int32_t token_id(const std::string& token) const;  // -1: there is none
  nanobind::str token_text(int32_t id) const;
  nanobind::str render_chat(const std::string& messages, bool add_generation_prompt,
                            const std::string& variables) const;

 private:
  std::shared_ptr<qd_tokenizer> handle_;
};

}  // namespace quadrille::python

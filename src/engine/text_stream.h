// SPDX-License-Identifier: Apache-2.0
// The border to the tokenizer: ids in, text out. Implemented by whoever has one (cli, server).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace quadrille::engine {

// Turns token ids into text piece by piece; one a request, called by the stepping thread alone.
class TextStream {
 public:
  virtual ~TextStream() = default;
  virtual std::string push(int32_t id) = 0;
  virtual std::string finish() = 0;
};
// Called in submit(), so from any thread.
using TextStreamFactory = std::function<std::unique_ptr<TextStream>()>;

}  // namespace quadrille::engine

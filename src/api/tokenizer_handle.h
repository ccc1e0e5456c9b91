// SPDX-License-Identifier: Apache-2.0
// What a qd_tokenizer is. Made by model_tokenizer.cpp from a folder and by model_engine.cpp from a model.
#pragma once

#include "model/tokenizer/tokenizer.h"
#include "quadrille/c_model.h"

struct qd_tokenizer {
  quadrille::tokenizer::Tokenizer tokenizer;
};

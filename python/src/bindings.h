// SPDX-License-Identifier: Apache-2.0
// The parts of quadrille._native; module.cpp calls each once.
#pragma once

#include <nanobind/nanobind.h>

void bind_tensor(nanobind::module_& module);
void bind_weights(nanobind::module_& module);
void bind_layer(nanobind::module_& module);
void bind_linear(nanobind::module_& module);
void bind_prepare(nanobind::module_& module);
void bind_tokenizer(nanobind::module_& module);
void bind_model(nanobind::module_& module);
void bind_folders(nanobind::module_& module);

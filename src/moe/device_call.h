// SPDX-License-Identifier: Apache-2.0
// What a call of the routed device layer consists of, with and without expert-parallel ranks: its routes, the plan over
// them, the shared expert, the absmax that tensor-parallel ranks exchange. Used by device_layer.cpp and
// device_expert_parallel.cpp.
#pragma once

#include <optional>

#include "moe/device_steps.h"

namespace quadrille::moe {

// Everything that one call's steps read.
struct DeviceCall {
  const kernels::DeviceTable& table;
  const DeviceMoeLayer& layer;
  const DeviceBatch& batch;
  Workspace workspace;
  LayerParts parts;
  DeviceStreams streams;
  uint32_t* status = nullptr;
  int64_t num_routes = 0;  // that are sorted and computed here
  DeviceLayerWatch* watch = nullptr;
  bool joins_steps = true;
};

// Shapes and rules of a layer; its batch's pointers.
Status check_experts_of_rule(const DeviceMoeLayer& layer);
Status check_shared(const DeviceMoeLayer& layer);
Status check_batch(const DeviceBatch& batch);
// Expected rows over the experts that are here.
int64_t expected_rows(const DeviceMoeLayer& layer, int64_t num_tokens);

struct DeviceRoutes {
  const int32_t* ids = nullptr;
  const float* weights = nullptr;
};
// Those of the batch, or what the router makes of its logits, or of its weight.
DeviceRoutes enqueue_router(const DeviceCall& call);

// Sorts the routes `ids` [num_tokens, top_k] (through `map`, where it is not null) and fills a tile list for each
// product. `slot_of_route` null: in the workspace.
struct PlanInput {
  int64_t num_tokens = 0;
  const int32_t* ids = nullptr;
  const int32_t* map = nullptr;
  int64_t map_size = 0;
  int32_t* slot_of_route = nullptr;
};
void enqueue_plan(const DeviceCall& call, const PlanInput& input, const GemmConfigs& configs,
                  kernels::TileList (&lists)[2]);

// Routes and plan of a call whose experts are all behind one map: in one launch where it has the router's weight and
// few tokens.
struct RoutedRows {
  DeviceRoutes routes;
  kernels::TileList lists[2];
};
// Whether enqueue_routes() makes the norm of the batch, if there is one, in the same launch.
bool norms_with_router(const DeviceCall& call, const GemmConfigs& configs);
RoutedRows enqueue_routes(const DeviceCall& call, const GemmConfigs& configs);

// The absmax of the rows of h that ranks exchange: those of the routes, then those of the shared expert.
struct Absmax {
  float* routes = nullptr;
  float* shared = nullptr;
  int64_t count = 0;
};

Absmax open_absmax(const DeviceCall& call);
// The absmax of all ranks, on the main stream; the side stream's part goes there and comes back.
Status exchange_absmax(const DeviceCall& call, const Absmax& absmax);

// The shared expert up to h, on the side stream where there is one. Its input is quantised on the main stream, which is
// what the side stream waits for.
struct SharedExpert {
  std::optional<MlpCall> call;  // none: there is no shared expert
  const float* gate = nullptr;  // [num_tokens]
};

bool runs_beside(const DeviceCall& call);
Result<SharedExpert> enqueue_shared(const DeviceCall& call, const GemmConfigs& configs, float* absmax);

}  // namespace quadrille::moe

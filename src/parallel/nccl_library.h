// SPDX-License-Identifier: Apache-2.0
// The functions of libnccl.so.2 that are called, found by name at run time. Types and numbers as NCCL 2 fixes them in
// its binary interface. Used by nccl.cpp alone.
#pragma once

#include <cstddef>
#include <string>

#include "core/result.h"

namespace quadrille::parallel {

using NcclHandle = void*;  // ncclComm_t
struct NcclId {            // ncclUniqueId
  char internal[128];
};
inline constexpr int kNcclSuccess = 0;
inline constexpr int kNcclUint8 = 1;
inline constexpr int kNcclFloat = 7;
inline constexpr int kNcclSum = 0;

struct NcclLibrary {
  int (*GetVersion)(int* version);
  int (*GetUniqueId)(NcclId* id);
  int (*CommInitRank)(NcclHandle* communicator, int size, NcclId id, int rank);
  int (*CommDestroy)(NcclHandle communicator);
  int (*CommAbort)(NcclHandle communicator);
  int (*CommGetAsyncError)(NcclHandle communicator, int* error);
  const char* (*GetErrorString)(int error);
  int (*AllReduce)(const void* send, void* recv, size_t count, int type, int op, NcclHandle communicator, void* stream);
  int (*AllGather)(const void* send, void* recv, size_t count, int type, NcclHandle communicator, void* stream);
  int (*Broadcast)(const void* send, void* recv, size_t count, int type, int root, NcclHandle communicator,
                   void* stream);
  int (*Send)(const void* send, size_t count, int type, int peer, NcclHandle communicator, void* stream);
  int (*Recv)(void* recv, size_t count, int type, int peer, NcclHandle communicator, void* stream);
  int (*GroupStart)();
  int (*GroupEnd)();
};

// kUnsupported with the places that were tried. The library stays open for good.
Result<NcclLibrary> open_nccl(const std::string& where);

}  // namespace quadrille::parallel

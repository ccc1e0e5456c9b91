// SPDX-License-Identifier: Apache-2.0
// The border of libquadrille_mpi.so, the only file that MPI is linked into: C types alone, so that the program opens it
// at run time and runs without it where MPI is missing. mpi.cpp calls it; mpi_module.cpp is the other side.
#pragma once

#include <stddef.h>

#define QD_MPI_MODULE_VERSION 1

struct QdMpiTransfer {
  int peer;
  const void* send;
  size_t send_bytes;
  void* receive;
  size_t receive_bytes;
};

enum QdMpiStatus { kQdMpiDone = 0, kQdMpiFailed = 1, kQdMpiStopped = 2, kQdMpiOutOfStep = 3 };

// Functions return a QdMpiStatus; other than kQdMpiDone and kQdMpiStopped write a text that ends with 0 to `error`.
// One call at a time.
struct QdMpiModule {
  int version;
  // Joins the MPI job of this process.
  int (*start)(int* rank, int* size, char* error, size_t error_bytes);
  // Moves all transfers, asking `stop` between looks; kQdMpiStopped as soon as it says true: no MPI call may follow.
  int (*exchange)(const struct QdMpiTransfer* transfers, size_t count, int (*stop)(void* context), void* context,
                  char* error, size_t error_bytes);
  int (*finish)(char* error, size_t error_bytes);
};

// extern "C" const QdMpiModule* quadrille_mpi_module(void);
#define QD_MPI_MODULE_SYMBOL "quadrille_mpi_module"

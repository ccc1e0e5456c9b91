// SPDX-License-Identifier: Apache-2.0
// Bytes between ranks by MPI's point-to-point calls. Never a blocking call while others may be lost: every wait is a
// loop of tests that can be stopped. No reduction of MPI: sums are made by the caller in rank order.
#include "parallel/mpi_module.h"

#include <mpi.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

constexpr size_t kMostBytes = size_t{1} << 30;  // of a message: MPI counts in int
constexpr int kTag = 1;
constexpr int kTestsBeforeSleep = 200;
// MPI has no wait that can be stopped. Who only yields gives whole slices to other processes on a busy machine; who
// sleeps, however shortly, is woken in front of them.
constexpr timespec kSleep = {0, 10'000};

MPI_Comm world = MPI_COMM_NULL;

int failed(int code, const char* call, char* error, size_t error_bytes) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  std::snprintf(error, error_bytes, "%s: %s", call, text);
  return kQdMpiFailed;
}

int start(int* rank, int* size, char* error, size_t error_bytes) {
  int running = 0, ended = 0;
  MPI_Finalized(&ended);
  if (ended != 0) {
    std::snprintf(error, error_bytes, "MPI has ended in this process and cannot be started again");
    return kQdMpiFailed;
  }
  MPI_Initialized(&running);
  int provided = 0;
  if (running == 0) {
    const int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
    if (code != MPI_SUCCESS) return failed(code, "MPI_Init_thread", error, error_bytes);
  }
  // A world of its own: messages of a program that also uses MPI stay apart.
  int code = MPI_Comm_dup(MPI_COMM_WORLD, &world);
  if (code != MPI_SUCCESS) return failed(code, "MPI_Comm_dup", error, error_bytes);
  MPI_Comm_set_errhandler(world, MPI_ERRORS_RETURN);
  code = MPI_Comm_rank(world, rank);
  if (code == MPI_SUCCESS) code = MPI_Comm_size(world, size);
  return code == MPI_SUCCESS ? kQdMpiDone : failed(code, "MPI_Comm_rank", error, error_bytes);
}

// The messages of one exchange: a transfer of zero bytes is one empty message, a large one several.
struct Messages {
  std::vector<MPI_Request> requests;
  std::vector<size_t> expected;  // bytes, of those received; SIZE_MAX for those sent
  std::vector<int> peer;

  template <typename Post>
  int add(int rank, size_t bytes, bool receives, Post post) {
    size_t done = 0;
    do {
      const size_t part = std::min(kMostBytes, bytes - done);
      MPI_Request request = MPI_REQUEST_NULL;
      const int code = post(done, static_cast<int>(part), &request);
      if (code != MPI_SUCCESS) return code;
      requests.push_back(request);
      expected.push_back(receives ? part : SIZE_MAX);
      peer.push_back(rank);
      done += part;
    } while (done < bytes);
    return MPI_SUCCESS;
  }
};

int post_all(const QdMpiTransfer* transfers, size_t count, Messages& messages) {
  for (size_t i = 0; i < count; ++i) {
    const QdMpiTransfer& t = transfers[i];
    const int code = messages.add(t.peer, t.receive_bytes, true, [&](size_t at, int bytes, MPI_Request* request) {
      return MPI_Irecv(static_cast<char*>(t.receive) + at, bytes, MPI_BYTE, t.peer, kTag, world, request);
    });
    if (code != MPI_SUCCESS) return code;
  }
  for (size_t i = 0; i < count; ++i) {
    const QdMpiTransfer& t = transfers[i];
    const int code = messages.add(t.peer, t.send_bytes, false, [&](size_t at, int bytes, MPI_Request* request) {
      return MPI_Isend(static_cast<const char*>(t.send) + at, bytes, MPI_BYTE, t.peer, kTag, world, request);
    });
    if (code != MPI_SUCCESS) return code;
  }
  return MPI_SUCCESS;
}

int check_sizes(const Messages& messages, const std::vector<MPI_Status>& statuses, char* error, size_t error_bytes) {
  for (size_t i = 0; i < statuses.size(); ++i) {
    if (messages.expected[i] == SIZE_MAX) continue;
    int bytes = 0;
    MPI_Get_count(&statuses[i], MPI_BYTE, &bytes);
    if (static_cast<size_t>(bytes) == messages.expected[i]) continue;
    std::snprintf(error, error_bytes, "ranks are out of step: rank %d sends %d bytes, expected %zu", messages.peer[i],
                  bytes, messages.expected[i]);
    return kQdMpiOutOfStep;
  }
  return kQdMpiDone;
}

int exchange(const QdMpiTransfer* transfers, size_t count, int (*stop)(void*), void* context, char* error,
             size_t error_bytes) {
  Messages messages;
  int code = post_all(transfers, count, messages);
  if (code != MPI_SUCCESS) return failed(code, "MPI_Isend or MPI_Irecv", error, error_bytes);
  std::vector<MPI_Status> statuses(messages.requests.size());
  const int num_requests = static_cast<int>(messages.requests.size());
  for (int tests = 0;; ++tests) {
    int all = 0;
    code = MPI_Testall(num_requests, messages.requests.data(), &all, statuses.data());
    if (code != MPI_SUCCESS) break;
    if (all != 0) return check_sizes(messages, statuses, error, error_bytes);
    if (stop(context) != 0) return kQdMpiStopped;
    if (tests > kTestsBeforeSleep) nanosleep(&kSleep, nullptr);
  }
  for (size_t i = 0; code == MPI_ERR_IN_STATUS && i < statuses.size(); ++i) {
    if (statuses[i].MPI_ERROR == MPI_ERR_TRUNCATE) {
      std::snprintf(error, error_bytes, "ranks are out of step: rank %d sends more than the %zu bytes expected",
                    messages.peer[i], messages.expected[i]);
      return kQdMpiOutOfStep;
    }
    if (statuses[i].MPI_ERROR != MPI_SUCCESS && statuses[i].MPI_ERROR != MPI_ERR_PENDING) code = statuses[i].MPI_ERROR;
  }
  return failed(code, "MPI_Testall", error, error_bytes);
}

int finish(char* error, size_t error_bytes) {
  int code = MPI_Comm_free(&world);
  if (code == MPI_SUCCESS) code = MPI_Finalize();
  return code == MPI_SUCCESS ? kQdMpiDone : failed(code, "MPI_Finalize", error, error_bytes);
}

constexpr QdMpiModule kModule = {QD_MPI_MODULE_VERSION, start, exchange, finish};

}  // namespace

extern "C" __attribute__((visibility("default"))) const QdMpiModule* quadrille_mpi_module() {
  return &kModule;
}

// SPDX-License-Identifier: Apache-2.0
// Captured graphs. Capture is local to the thread: other threads may use the device meanwhile.
#include "device/cuda_status.h"

namespace quadrille::device {
namespace {

// Ends a capture that nobody ended, so that an exception leaves the stream usable.
class Capture {
 public:
  explicit Capture(cudaStream_t stream) : stream_(stream) {}
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  ~Capture() {
    if (!ended_) (void)end();
    if (graph_ != nullptr) (void)cudaGraphDestroy(graph_);
  }
  Status end() {
    ended_ = true;
    return cuda_status(cudaStreamEndCapture(stream_, &graph_), "ending the capture of a graph");
  }
  cudaGraph_t graph() const { return graph_; }

 private:
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  bool ended_ = false;
};

}  // namespace

Result<Graph> Graph::capture(Stream stream, const std::function<Status()>& enqueue) {
  QD_TRY_STATUS(check_stream(stream));
  QD_TRY_STATUS(cuda_status(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeThreadLocal),
                            "beginning the capture of a graph"));
  Capture capture(native(stream));
  const Status enqueued = enqueue();
  const Status ended = capture.end();
  if (!enqueued) return enqueued.error();
  QD_TRY_STATUS(ended);
  cudaGraphExec_t exec = nullptr;
  QD_TRY_STATUS(cuda_status(cudaGraphInstantiate(&exec, capture.graph(), 0), "instantiating a graph"));
  return Graph(exec);
}

Graph::~Graph() {
  if (exec_ != nullptr) (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(exec_));
}

Status Graph::launch(Stream stream) const {
  QD_TRY_STATUS(check_stream(stream));
  return cuda_status(cudaGraphLaunch(static_cast<cudaGraphExec_t>(exec_), native(stream)), "launching a graph");
}

}  // namespace quadrille::device

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Proves on the source that device work goes to streams that were handed in, and that nothing waits or reads back.

usage: check_streams.py [--self-test]
In src/kernels, src/prepare, src/moe and src/device: every launch and every asynchronous call names a stream that is not
a default stream; no call blocks the host, serialises the device or copies to the host. src/device holds the functions
whose names say that they wait (synchronize) or lock host memory; ALLOWED names them, and nothing else may call them.
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("src/kernels", "src/prepare", "src/moe", "src/device")
SUFFIXES = (".cu", ".cuh", ".cpp", ".h")

# Calls that wait, serialise the device, or run on the default stream. A name with Async is judged by STREAM_ARGUMENT.
BLOCKING = re.compile(
    r"\b(cudaDeviceSynchronize|cudaThreadSynchronize|cudaStreamSynchronize|cudaEventSynchronize|cudaDeviceReset|"
    r"cudaStreamQuery|cuCtxSynchronize|cuStreamSynchronize|cuEventSynchronize|cudaStreamCreate|cudaEventQuery|"
    r"cudaMemcpy(?!\w*Async)(?!Kind)\w*|cudaMemset(?!\w*Async)\w*|cudaMalloc(?!Async|FromPoolAsync)\w*|"
    r"cudaFree(?!Async)\w*|cudaHostAlloc|cudaHostRegister|cudaHostUnregister|"
    r"cuMem(?:cpy|set)(?!\w*Async)\w*|cuMemAlloc(?!Async)\w*|cuMemFree(?!Async)\w*|"
    r"cudaLaunchHostFunc|cudaStreamAddCallback)\s*\(")
# Ours that wait or read back: only callers above these rooms may use them.
WAITING = re.compile(r"(?<![\w~])(?:device\s*::\s*)?(synchronize|copy_to_host|reached|elapsed_ms)\s*\(")
DEFAULT_STREAM = re.compile(r"\b(cudaStreamLegacy|cudaStreamPerThread|cudaStreamDefault|CU_STREAM_LEGACY|"
                            r"CU_STREAM_PER_THREAD|CUDA_API_PER_THREAD_DEFAULT_STREAM)\b")
# An argument that is the default stream in another spelling.
NO_STREAM = re.compile(r"^(|0[xX]?0*[uUlL]*|nullptr|NULL|\{\s*\w*\s*\}|(cudaStream_t|CUstream|(device\s*::\s*)?Stream)\s*"
                       r"[({]\s*(0|nullptr|NULL)?\s*[)}]|"
                       r"\(\s*(cudaStream_t|CUstream)\s*\)\s*\w+|"
                       r"(static_cast|reinterpret_cast)\s*<\s*(cudaStream_t|CUstream)\s*>\s*\(\s*(0|nullptr|NULL)\s*\)|"
                       r"native\s*\(\s*(\{\s*\}|(device\s*::\s*)?Stream\s*\{.*\})\s*\))$", re.S)
# Name -> which argument is the stream (it has a default, or could be a null one).
STREAM_ARGUMENT = {
    "cudaMemcpyAsync": 4, "cudaMemcpy2DAsync": 7, "cudaMemcpyToSymbolAsync": 5, "cudaMemcpyFromSymbolAsync": 5,
    "cudaMemcpyPeerAsync": 5, "cudaMemcpy3DAsync": 1, "cudaMemsetAsync": 3, "cudaMemset2DAsync": 5,
    "cudaMallocAsync": 2, "cudaMallocFromPoolAsync": 3, "cudaFreeAsync": 1, "cudaMemPrefetchAsync": 3,
    "cudaEventRecord": 1, "cudaEventRecordWithFlags": 1, "cudaStreamWaitEvent": 0, "cudaGraphLaunch": 1,
    "cudaStreamBeginCapture": 0, "cudaLaunchKernel": 5, "cudaLaunchCooperativeKernel": 5, "cuLaunchKernel": 8,
    "launch_chained": 4,
}
CALL = re.compile(r"\b(cuda\w+Async|" + "|".join(STREAM_ARGUMENT) + r")\s*\(")
EXTENDED_LAUNCH = re.compile(r"\b(cudaLaunchKernelEx\w*|cuLaunchKernelEx)\s*\(")

# (file, the function that may, the call). The function's own name says what it does.
ALLOWED = {
    ("src/device/cuda_device.cpp", "Status synchronize(", "cudaStreamSynchronize"),
    ("src/device/cuda_device.cpp", "Status synchronize(", "cudaEventSynchronize"),
    ("src/device/cuda_device.cpp", "Result<bool> reached(", "cudaEventQuery"),
    ("src/device/cuda_memory.cpp", "Result<PinnedBuffer> PinnedBuffer::allocate(", "cudaHostAlloc"),
    ("src/device/cuda_memory.cpp", "PinnedBuffer::~PinnedBuffer(", "cudaFreeHost"),
    ("src/device/cuda_peer.cpp", "Result<PeerBuffer> PeerBuffer::allocate(", "cudaMalloc"),
    ("src/device/cuda_peer.cpp", "PeerBuffer::~PeerBuffer(", "cudaFree"),
    # What an observer asks to see; no step calls it.
    ("src/moe/device_watch.cpp", "read_bytes(", "copy_to_host"),
    ("src/moe/device_watch.cpp", "read_bytes(", "synchronize"),
}


def blank(match):
    return re.sub(r"[^\n]", " ", match.group(0))


def strip(text):
    """The text without comments and string contents, places unchanged."""
    pattern = r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|(?<![\w])\'(?:\\.|[^\'\\\n])+\''
    return re.sub(pattern, blank, text, flags=re.S)


def closing(text, start):
    """Place of the bracket that closes the one at `start`, or -1."""
    depth = 0
    for i in range(start, len(text)):
        depth += text[i] in "([{"
        depth -= text[i] in ")]}"
        if depth == 0:
            return i
    return -1


def arguments(text):
    """The top-level arguments of what stands between two brackets; < and > are left alone but for templates of casts."""
    parts, depth, begin = [], 0, 0
    masked = re.sub(r"(?<=\w)<[\w\s:,*&]*>(?=\s*\()", lambda m: "_" * len(m.group(0)), text)
    for i, c in enumerate(masked):
        depth += c in "([{"
        depth -= c in ")]}"
        if c == "," and depth == 0:
            parts.append(text[begin:i].strip())
            begin = i + 1
    last = text[begin:].strip()
    return parts + [last] if parts or last else []


def function_of(text, place):
    """The head of the function that `place` lies in: the last line before it that begins in the first column."""
    heads = re.findall(r"^[A-Za-z_].*\(.*$", text[:place], flags=re.M)
    return heads[-1] if heads else ""


def findings(path, source):
    text = strip(source)

    def finding(place, what):
        return f"{path}:{text.count(chr(10), 0, place) + 1}: {what}"

    def allowed(place, call):
        return any(path == file and name == call and function in function_of(text, place)
                   for file, function, name in ALLOWED)

    for match in re.finditer(r"<<<", text):
        end = text.find(">>>", match.end())
        launch = arguments(text[match.end():end]) if end >= 0 else []
        if len(launch) < 4 or NO_STREAM.match(launch[3]):
            yield finding(match.start(), "a launch without a stream of its own")
    for match in BLOCKING.finditer(text):
        if not allowed(match.start(), match.group(1)):
            yield finding(match.start(), f"{match.group(1)} waits or uses the default stream")
    for match in DEFAULT_STREAM.finditer(text):
        yield finding(match.start(), f"{match.group(1)}: the default stream")
    for match in CALL.finditer(text):
        end = closing(text, match.end() - 1)
        given = arguments(text[match.end():end])
        place = STREAM_ARGUMENT.get(match.group(1))
        if place is None:
            yield finding(match.start(), f"{match.group(1)} is not known here: say in this script where its stream is")
        elif len(given) <= place or NO_STREAM.match(given[place]):
            yield finding(match.start(), f"{match.group(1)} without a stream of its own")
    for match in EXTENDED_LAUNCH.finditer(text):
        streams = re.findall(r"\.\s*(?:stream|hStream)\s*=\s*([^;,}]+)", text[:match.start()])
        if not streams or NO_STREAM.match(streams[-1].strip()):
            yield finding(match.start(), f"{match.group(1)}: its configuration names no stream")
    if not path.startswith("src/device/"):
        for match in WAITING.finditer(text):
            if allowed(match.start(), match.group(1)):
                continue
            yield finding(match.start(), f"{match.group(1)}() waits for the device or reads back")


# Lines that must be found, and lines that must not.
PLANTED = """
kernel<<<grid, block>>>(p);
kernel<<<grid, block, 0>>>(p);
kernel<<<grid, block, 0, 0>>>(p);
kernel<<<grid, block, bytes, nullptr>>>(p);
kernel<kA, kB><<<dim3(a, b), f(x, y), 0, {}>>>(p);
kernel<<<grid, block, 0, cudaStream_t{}>>>(p);
kernel<<<grid, block, 0, (cudaStream_t)0>>>(p);
kernel<<<grid, block, 0, static_cast<cudaStream_t>(nullptr)>>>(p);
kernel<<<grid, block, 0, native({})>>>(p);
kernel<<<grid, block, 0, cudaStreamLegacy>>>(p);
kernel<<<grid, block, 0, cudaStreamPerThread>>>(p);
cudaDeviceSynchronize();
cudaStreamSynchronize(stream);
cudaEventSynchronize(event);
cudaEventQuery(event);
cudaStreamQuery(stream);
cudaMemcpy(a, b, n, cudaMemcpyDeviceToHost);
cudaMemcpy2D(a, p, b, q, w, h, kind);
cudaMemcpyToSymbol(table, b, n);
cudaMemcpyFromSymbol(b, table, n);
cudaMemcpyAsync(a, b, n, kind);
cudaMemcpyAsync(a, b, n, kind, 0);
cudaMemcpyToSymbolAsync(table, b, n, 0, kind);
cudaMemset(a, 0, n);
cudaMemsetAsync(a, 0, n);
cudaMemsetAsync(a, 0, n, nullptr);
cudaMalloc(&p, n);
cudaMalloc (&p, n);
cudaMallocManaged(&p, n);
cudaMallocHost(&p, n);
cudaHostAlloc(&p, n, 0);
cudaFree(p);
cudaFreeHost(p);
cudaMallocAsync(&p, n, 0);
cudaFreeAsync(p, nullptr);
cudaStreamCreate(&stream);
cudaStreamCreateWithFlags(&stream, cudaStreamDefault);
cudaEventRecord(event);
cudaEventRecord(event, 0);
cudaStreamWaitEvent(0, event, 0);
cudaGraphLaunch(graph, nullptr);
cudaLaunchKernel(f, grid, block, args, 0);
cudaLaunchKernelEx(&config, f, p);
launch_chained(f, grid, block, 0, cudaStream_t{}, p);
cudaSomethingNewAsync(a, b);
cuCtxSynchronize();
cuMemcpyDtoH(a, b, n);
device::synchronize(stream);
if (auto ok = synchronize(event); !ok) return;
must(device::copy_to_host(a, b, n, stream));
""".strip().splitlines()
INNOCENT = """
kernel<<<grid, block, 0, stream>>>(p);
kernel<kA, (kB > 2)><<<dim3(a, b), threads, bytes, native(stream)>>>(p, 0);
(small ? f<true> : f<false>)<<<a < b ? a : b, threads, 0, native(stream)>>>(p);
// kernel<<<grid, block>>>(p); cudaDeviceSynchronize();
const char* text = "cudaMemcpy(a, b, n, kind)";
cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, native(stream));
cudaMemsetAsync(device, byte, bytes, native(stream));
cudaMallocAsync(&memory, bytes, native(stream));
cudaEventRecord(native(event), native(stream));
cudaStreamWaitEvent(native(stream), native(event), 0);
cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
config.stream = native(stream); cudaLaunchKernelEx(&config, f, p);
launch_chained(f, grid, block, 0, native(stream), p);
__syncthreads(); __syncwarp(); x = value >>= 1; cudaMemcpyKind kind = how;
std::memcpy(a, b, n); device::copy_to_device(a, b, n, stream);
""".strip().splitlines()


def self_test():
    path = "src/kernels/cuda/planted.cu"
    missed = [line for line in PLANTED if not list(findings(path, f"void f() {{\n  {line}\n}}\n"))]
    false = [line for line in INNOCENT if list(findings(path, f"void f() {{\n  {line}\n}}\n"))]
    # What one function of src/device may, no other may.
    wait = "Status {}(Stream stream) {{\n  return status(cudaStreamSynchronize(native(stream)));\n}}\n"
    if list(findings("src/device/cuda_device.cpp", wait.format("synchronize"))):
        false.append("synchronize() of src/device")
    if not list(findings("src/device/cuda_device.cpp", wait.format("record"))):
        missed.append("cudaStreamSynchronize in record() of src/device")
    if not list(findings("src/device/cuda_memory.cpp", wait.format("synchronize"))):
        missed.append("cudaStreamSynchronize in another file of src/device")
    look = "Status {}(void* to) {{\n  return device::synchronize(stream);\n}}\n"
    if list(findings("src/moe/device_watch.cpp", look.format("read_bytes"))):
        false.append("read_bytes() of an observer")
    if not list(findings("src/moe/device_watch.cpp", look.format("up"))):
        missed.append("synchronize() in another function of src/moe/device_watch.cpp")
    for line in missed:
        print(f"not caught: {line}")
    for line in false:
        print(f"caught without reason: {line}")
    print(f"check_streams self-test: {len(PLANTED) + 3} planted violations, {len(missed)} missed; "
          f"{len(INNOCENT) + 2} innocent lines, {len(false)} caught")
    return 1 if missed or false else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    paths = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*") if p.suffix in SUFFIXES)
    problems, launches = [], 0
    for path in paths:
        source = path.read_text(encoding="utf-8")
        launches += strip(source).count("<<<")
        problems += findings(str(path.relative_to(ROOT)), source)
    print("\n".join(problems) if problems else f"streams: {launches} launches in {len(paths)} sources, all on streams "
          "that were handed in; nothing waits or reads back")
    return 1 if problems or not paths else 0


if __name__ == "__main__":
    sys.exit(main())

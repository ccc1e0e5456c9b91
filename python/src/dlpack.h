// SPDX-License-Identifier: Apache-2.0
// The structs that DLPack hands over in capsules, laid out as its specification says (version 1, and the unversioned
// form before it). Only what tensor.cpp and tensor_argument.cpp read and write.
#pragma once

#include <cstdint>

namespace quadrille::python::dlpack {

enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3 };
enum TypeCode : uint8_t { kInt = 0, kUint = 1, kFloat = 2, kBfloat = 4, kFloat8E4m3fn = 10 };

struct Device {
  int32_t type;
  int32_t id;
};
struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  int32_t rank;
  DataType type;
  int64_t* shape;
  int64_t* strides;  // in elements; null: row-major without gaps
  uint64_t byte_offset;
};
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed* self);
};
inline constexpr const char* kName = "dltensor";

struct ManagedVersioned {
  uint32_t major, minor;
  void* context;
  void (*deleter)(ManagedVersioned* self);
  uint64_t flags;  // kReadOnly
  Tensor tensor;
};
inline constexpr const char* kVersionedName = "dltensor_versioned";
inline constexpr uint64_t kReadOnly = 1;

}  // namespace quadrille::python::dlpack

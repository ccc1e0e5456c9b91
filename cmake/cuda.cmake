# SPDX-License-Identifier: Apache-2.0
# Device code: sm_90a only, compiled ahead of time; -fmad=false and IEEE division (docs/numerics.md section 1). The
# launcher fails the build on what the compiler only mentions: serialised wgmma (C75xx), spills, local memory.
set(QD_CUDA AUTO CACHE STRING "Build the CUDA backend: ON, OFF, AUTO (where nvcc is)")
set(QD_HAS_CUDA OFF)
if(NOT QD_CUDA STREQUAL "OFF" AND NOT QD_SANITIZE)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_ARCHITECTURES 90a)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    # CMake 3.25 does not know the C++20 flag of nvcc 13: it stands in qd_device_options.
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    if(CUDAToolkit_VERSION VERSION_LESS 12.8)
      message(FATAL_ERROR "the CUDA backend needs nvcc 12.8 or newer, found ${CUDAToolkit_VERSION}; -DQD_CUDA=OFF builds without it")
    endif()
    set(QD_HAS_CUDA ON)
  elseif(QD_CUDA STREQUAL "ON")
    message(FATAL_ERROR "QD_CUDA=ON, and no nvcc was found: put it on PATH, or name it in CMAKE_CUDA_COMPILER")
  endif()
endif()
message(STATUS "CUDA backend: ${QD_HAS_CUDA}")

# qd_cuda_library(NAME SOURCES a.cu ... LIBS ...)
function(qd_cuda_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;LIBS" ${ARGN})
  add_library(${name} STATIC ${arg_SOURCES})
  qd_device_options(${name})
  target_link_libraries(${name} PUBLIC ${arg_LIBS} PRIVATE CUDA::cudart_static)
endfunction()

# Flags of every unit with device code.
function(qd_device_options name)
  target_compile_options(${name} PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;-fmad=false;-prec-div=true;-prec-sqrt=true;-ftz=false;-Xptxas=-v;--expt-relaxed-constexpr;-lineinfo;-Wno-deprecated-gpu-targets>")
  set_target_properties(${name} PROPERTIES CUDA_SEPARABLE_COMPILATION OFF
    CUDA_COMPILER_LAUNCHER "${Python3_EXECUTABLE};${PROJECT_SOURCE_DIR}/tools/nvcc_gate.py;${QD_CUDA_CACHE}")
endfunction()
if(QD_HAS_CUDA)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  find_program(QD_CCACHE ccache)
  set(QD_CUDA_CACHE "")
  if(QD_CCACHE AND CMAKE_CXX_COMPILER_LAUNCHER)
    set(QD_CUDA_CACHE "${QD_CCACHE}")
  endif()
endif()

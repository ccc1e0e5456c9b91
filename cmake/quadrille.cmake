# SPDX-License-Identifier: Apache-2.0
# Build rules that every folder shares: flags, library and test functions.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1 -DNDEBUG")

# No contraction anywhere: an fma is where it is written (reference: docs/numerics.md section 1).
set(host_flags -ffp-contract=off -Wall -Wextra -Wshadow -Wno-unknown-pragmas -fno-math-errno)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND host_flags -Wno-psabi)
endif()
foreach(flag ${host_flags})
  add_compile_options($<$<NOT:$<COMPILE_LANGUAGE:CUDA>>:${flag}>)
endforeach()
add_compile_options($<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-ffp-contract=off,-Wall,-fno-math-errno>)
if(QD_SANITIZE)
  # -O1: instrumented -O2 doubles the compile time of the gate.
  set(CMAKE_CXX_FLAGS_RELEASE "-O1 -gline-tables-only -DNDEBUG")
  add_compile_options(-fsanitize=${QD_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${QD_SANITIZE})
endif()

# For programs that travel to machines without the shared library of fmt.
option(QD_STATIC_FMT "Compile fmt into the library and the program" OFF)
if(QD_STATIC_FMT)
  add_compile_definitions(FMT_HEADER_ONLY=1)
endif()

find_package(Threads REQUIRED)
include_directories(${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)

# qd_library(NAME SOURCES a.cpp ... LIBS quadrille_core ...): one static library a module.
function(qd_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;LIBS" ${ARGN})
  add_library(${name} STATIC ${arg_SOURCES})
  target_link_libraries(${name} PUBLIC ${arg_LIBS})
endfunction()

# The same, and NAME_stepped beside it: compiled with the hooks of the step harness (src/device/order.h), built only
# where a test links it. Its LIBS that have a stepped form are taken in that form.
function(qd_stepped_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;LIBS" ${ARGN})
  qd_library(${name} SOURCES ${arg_SOURCES} LIBS ${arg_LIBS})
  add_library(${name}_stepped STATIC EXCLUDE_FROM_ALL ${arg_SOURCES})
  target_compile_definitions(${name}_stepped PUBLIC QD_STEP_HARNESS)
  foreach(lib ${arg_LIBS})
    if(TARGET ${lib}_stepped)
      set(lib ${lib}_stepped)
    endif()
    target_link_libraries(${name}_stepped PUBLIC ${lib})
  endforeach()
endfunction()

# qd_test(NAME SOURCES a_test.cpp ... LIBS ... [TIMEOUT s] [LABELS l]): one GoogleTest program, one ctest entry.
function(qd_test name)
  if(NOT QD_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(arg "" "TIMEOUT" "SOURCES;LIBS;LABELS" ${ARGN})
  find_package(GTest REQUIRED)
  add_executable(${name} ${arg_SOURCES})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_compile_definitions(${name} PRIVATE QD_TEST_DATA_DIR="${PROJECT_SOURCE_DIR}/tests/data"
    QD_SOURCE_DIR="${PROJECT_SOURCE_DIR}" QD_PROGRAM="${PROJECT_BINARY_DIR}/bin/quadrille")
  target_link_libraries(${name} PRIVATE ${arg_LIBS} GTest::gtest GTest::gmock GTest::gtest_main)
  if(QD_SANITIZE)
    target_compile_options(${name} PRIVATE -O0)  # a test's own code is light; it halves the time of its build
  endif()
  add_test(NAME ${name} COMMAND ${name})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 600)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${arg_TIMEOUT} LABELS "${arg_LABELS}")
endfunction()

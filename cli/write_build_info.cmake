# SPDX-License-Identifier: Apache-2.0
# Run at each build: writes OUTPUT (build_info.h) when the commit changed, so that nothing is rebuilt otherwise.
execute_process(COMMAND git -C "${SOURCE_DIR}" describe --always --dirty --abbrev=12 --exclude=*
  OUTPUT_VARIABLE commit ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
if(NOT commit)
  set(commit "unknown")
endif()
set(text "// Generated at build time.\n#pragma once\n\n#define QD_BUILD_VERSION \"${VERSION}\"\n")
string(APPEND text "#define QD_BUILD_COMMIT \"${commit}\"\n#define QD_BUILD_TYPE \"${BUILD_TYPE}\"\n")
string(APPEND text "#define QD_BUILD_SANITIZE \"${SANITIZE}\"\n")
set(before "")
if(EXISTS "${OUTPUT}")
  file(READ "${OUTPUT}" before)
endif()
if(NOT before STREQUAL text)
  file(WRITE "${OUTPUT}" "${text}")
endif()

// SPDX-License-Identifier: Apache-2.0
// The list of tables in this build, best first, and the choice among them.
#include "kernels/api/registry.h"

#include <string>

#include "kernels/cpu/tables.h"
#include "kernels/ref/tables.h"

namespace quadrille::kernels {
namespace {

const KernelTable* const kTables[] = {
    &cpu::kAmxTable,     &cpu::kAvx512Table, &cpu::kAvx2Table,   &cpu::kGenericTable,
    &cpu::kVdpbf16Table, &ref::kRefTable,    &ref::kHopperTable,
};

std::string names() {
  std::string list;
  for (const KernelTable* table : kTables) list += (list.empty() ? "" : ", ") + std::string(table->name);
  return list;
}

}  // namespace

std::span<const KernelTable* const> all_tables() {
  return kTables;
}

Result<const KernelTable*> select_table(std::string_view name) {
  for (const KernelTable* table : kTables) {
    if (name.empty() ? table->by_name_only : name != table->name) continue;
    const std::string reason = table->unavailable_reason();
    if (reason.empty()) return table;
    if (!name.empty()) {
      return make_error(ErrorCode::kUnsupported, "the kernels '{}' do not run on this machine: {} (there are: {})",
                        name, reason, names());
    }
  }
  if (name.empty()) {
    return make_error(ErrorCode::kUnsupported, "none of the kernels of this build runs on this machine ({})", names());
  }
  return make_error(ErrorCode::kInvalidArgument, "there are no kernels named '{}': choose one of {}", name, names());
}

}  // namespace quadrille::kernels

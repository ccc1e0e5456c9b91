#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Proves from the compiled objects that every CPU unit holds its own instructions and no others.

A unit is a folder src/kernels/cpu/NAME with .cpp files. RULES says, for each, what its objects must and must not hold;
a unit without a rule, or without an object in the build, is an error. From nm: a unit defines no weak symbol (the linker
could hand its code to a machine without its instructions) and nothing global but its constant structs. With --program,
no function of the linked program outside the units holds a zmm or tile register but the probes that are named here.
"""
import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNITS = "src/kernels/cpu"

ZMM = r"%zmm\d"
EVEX = r"%(zmm|k[0-7]\b|[xy]mm(1[6-9]|2\d|3[01]))"  # registers of AVX-512 alone
TILES = r"\b(tdp\w+|tile\w+|ldtilecfg|sttilecfg)\b|%tmm"
PAIRS = r"\bvdpbf16ps\b"


@dataclass
class Rule:
    needs: dict = field(default_factory=dict)    # what it is -> pattern that some instruction must match
    refuses: dict = field(default_factory=dict)  # what it is -> pattern that no instruction may match
    only_in: dict = field(default_factory=dict)  # pattern -> how the names of the source files that may hold it end


RULES = {
    "generic": Rule({"a product of SSE2": r"\bmulps\b"},
                    {"a VEX or EVEX instruction": r"^v", "a ymm or zmm register": r"%[yz]mm", "tiles": TILES}),
    "avx2": Rule({"FMA of 8 lanes": r"\bvfn?madd\d+ps\b.*%ymm"},
                 {"an AVX-512 register": EVEX, "vdpbf16ps": PAIRS, "tiles": TILES}),
    "avx512": Rule({"a permute of a table (vpermw or vpermb)": r"\bvperm[wb]\b.*%zmm",
                    "f32 FMA of 16 lanes": r"\bvfn?madd\d+ps\b.*%zmm"},
                   {"vdpbf16ps": PAIRS, "tiles": TILES},
                   {r"\bvpdp(bus|wss)ds?\b": "vnni.cpp"}),
    "vdpbf16": Rule({"vdpbf16ps": PAIRS, "a permute of a table (vpermw)": r"\bvpermw\b.*%zmm"}, {"tiles": TILES}),
    "amx": Rule({"tdpbf16ps": r"\btdpbf16ps\b"}, {"vdpbf16ps": PAIRS}),
}

# What a unit may define for others: its constant structs.
STRUCT = re.compile(r"^quadrille::kernels::cpu::k[A-Z]\w*$")
# Functions outside the units that may use the wide registers: probes of bench/, which are called where cpuid allows.
PROBES = re.compile(r"quadrille::bench::\(anonymous namespace\)::"
                    r"(read_avx512|fma512\w*|pairs512\w*|configure_tiles|finish_tiles|four_sums\w*|six_sums)(<\d+>)?\(")


def output_of(*command):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def compiled_units(build):
    """unit -> [(source name, object)] from the compilation database of a build folder."""
    units = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        source = Path(entry["file"])
        parts = source.as_posix().split(f"/{UNITS}/")
        if len(parts) != 2 or "/" not in parts[1]:
            continue
        found = re.search(r"(?:^|\s)-o\s+(\S+\.o(?:bj)?)\b", entry.get("command", ""))
        name = entry.get("output") or (found.group(1) if found else None)
        if name:
            units.setdefault(parts[1].split("/")[0], []).append((source.name, Path(entry["directory"]) / name))
    return units


def folders_with_sources(root):
    return sorted({path.parent.name for path in (root / UNITS).glob("*/*.cpp")})


def instructions_of(tools, path):
    """(function, instruction) for each instruction of an object or program."""
    function = "?"
    for line in output_of(tools.objdump, "-d", "--no-show-raw-insn", "--no-addresses", path).splitlines():
        if line.endswith(">:"):
            function = line[1:-2]
        elif line.startswith("\t"):
            yield function, line.strip()


def demangled(names):
    if not names:
        return {}
    text = subprocess.run(["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True).stdout
    return dict(zip(names, text.splitlines()))


def symbol_faults(tools, path):
    """Defined symbols that may not leave a unit, and all names of functions in it."""
    faults, functions, outside = [], set(), []
    for line in output_of(tools.nm, path).splitlines():
        parts = line.split(maxsplit=2)
        if len(parts) != 3:
            continue  # undefined
        _, kind, name = parts
        if kind in "tTwWi":
            functions.add(name)
        if kind in "vVwWu":
            faults.append(("weak symbol", name))
        elif kind.isupper():
            outside.append((kind, name))
    readable = demangled([name for _, name in outside + faults])
    faults = [f"{what} {readable[name]}" for what, name in faults]
    faults += [f"global symbol {readable[name]}" for kind, name in outside
               if kind not in "DRB" or not STRUCT.match(readable[name])]
    return faults, functions


def rule_faults(tools, rule, objects):
    """What the instructions of one unit's objects break."""
    faults, needed = [], dict(rule.needs)
    refused = {what: re.compile(pattern) for what, pattern in rule.refuses.items()}
    for source, path in objects:
        seen = set()
        single = {re.compile(pattern): name for pattern, name in rule.only_in.items() if not source.endswith(name)}
        for function, text in instructions_of(tools, path):
            for what in [w for w, pattern in needed.items() if re.search(pattern, text)]:
                del needed[what]
            broken = [what for what, pattern in refused.items() if pattern.search(text)]
            broken += [f"an instruction of *{name} alone" for pattern, name in single.items() if pattern.search(text)]
            for what in broken:
                if what not in seen:
                    seen.add(what)
                    faults.append(f"{source}: {what}: '{text}' in {demangled([function])[function]}")
    return faults + [f"no object holds {what}" for what in needed]


def check_units(tools, build, root):
    """Faults of all units, and the names of their functions."""
    faults, functions = [], set()
    compiled, folders = compiled_units(build), folders_with_sources(root)
    if not folders:
        faults.append(f"{root / UNITS}: no unit found")
    for unit in folders:
        objects = compiled.get(unit, [])
        missing = [str(path) for _, path in objects if not path.is_file()]
        if unit not in RULES:
            faults.append(f"{unit}: no rule says what it may hold: add one to tools/check_isa.py")
            continue
        if not objects or missing:
            faults.append(f"{unit}: not compiled in {build}: " + (", ".join(missing) or "no source of it is in the build"))
            continue
        for source, path in objects:
            broken, names = symbol_faults(tools, path)
            faults += [f"{unit}: {source}: {text}" for text in broken]
            functions |= names
        faults += [f"{unit}: {text}" for text in rule_faults(tools, RULES[unit], objects)]
    return faults, functions


def check_program(tools, program, unit_functions):
    """Functions of a linked program outside the units that hold a zmm or tile register."""
    wide = re.compile(ZMM + "|" + TILES)
    found, seen_unit = {}, False
    for function, text in instructions_of(tools, program):
        if ("%zmm" in text or "tile" in text or "tdp" in text) and wide.search(text):
            if function in unit_functions:
                seen_unit = True
            elif function not in found:
                found[function] = text
    readable = demangled(list(found))
    faults = [f"{program}: '{text}' in {readable[name]}, which is no function of a unit" for name, text in found.items()
              if not PROBES.search(readable[name])]
    if not seen_unit:
        faults.append(f"{program}: no function of a unit in it: stripped, or not built from these objects")
    return faults


# ---- self-test: objects with planted faults ----

HEALTHY = {
    "generic": "mulps %xmm1, %xmm0",
    "avx2": "vfmadd231ps %ymm0, %ymm1, %ymm2",
    "avx512": "vpermw %zmm0, %zmm1, %zmm2\n vfmadd231ps %zmm0, %zmm1, %zmm2",
    "vdpbf16": "vdpbf16ps %zmm0, %zmm1, %zmm2\n vpermw %zmm0, %zmm1, %zmm2",
    "amx": "tdpbf16ps %tmm0, %tmm1, %tmm2",
}
# (what, unit, code of its function or None for HEALTHY, further assembler, text that must be found)
PLANTED = [
    ("nothing", "generic", None, "", None),
    ("a zmm register in generic", "generic", "mulps %xmm1, %xmm0\n vaddps %zmm0, %zmm1, %zmm2", "", "ymm or zmm register"),
    ("a ymm register in generic", "generic", "mulps %xmm1, %xmm0\n vaddps %ymm0, %ymm1, %ymm2", "", "ymm or zmm register"),
    ("an AVX form in generic", "generic", "mulps %xmm1, %xmm0\n vaddps %xmm0, %xmm1, %xmm2", "", "VEX or EVEX"),
    ("a zmm register in avx2", "avx2", HEALTHY["avx2"] + "\n vaddps %zmm0, %zmm1, %zmm2", "", "AVX-512 register"),
    ("ymm17 in avx2", "avx2", HEALTHY["avx2"] + "\n vaddps %ymm17, %ymm1, %ymm2", "", "AVX-512 register"),
    ("no FMA in avx2", "avx2", "vaddps %ymm0, %ymm1, %ymm2", "", "no object holds FMA of 8 lanes"),
    ("vdpbf16ps in avx512", "avx512", HEALTHY["avx512"] + "\n vdpbf16ps %zmm0, %zmm1, %zmm2", "", "vdpbf16ps"),
    ("no permute in avx512", "avx512", "vfmadd231ps %zmm0, %zmm1, %zmm2", "", "no object holds a permute"),
    ("no FMA in avx512", "avx512", "vpermw %zmm0, %zmm1, %zmm2", "", "no object holds f32 FMA"),
    ("VNNI outside its file", "avx512", HEALTHY["avx512"] + "\n vpdpbusd %zmm0, %zmm1, %zmm2", "", "vnni.cpp alone"),
    ("no vdpbf16ps in vdpbf16", "vdpbf16", "vpermw %zmm0, %zmm1, %zmm2", "", "no object holds vdpbf16ps"),
    ("tdpbf16ps in vdpbf16", "vdpbf16", HEALTHY["vdpbf16"] + "\n tdpbf16ps %tmm0, %tmm1, %tmm2", "", "tiles"),
    ("vdpbf16ps in amx", "amx", HEALTHY["amx"] + "\n vdpbf16ps %zmm0, %zmm1, %zmm2", "", "vdpbf16ps"),
    ("no tdpbf16ps in amx", "amx", "vaddps %zmm0, %zmm1, %zmm2", "", "no object holds tdpbf16ps"),
    ("a weak function", "avx512", None, ".weak _ZSt3maxv\n_ZSt3maxv: ret", "weak symbol std::max"),
    ("a weak object", "avx2", None, '.weak table\n.data\n.type table, @object\ntable: .quad 1\n.text', "weak symbol table"),
    ("a global function", "vdpbf16", None, ".globl escaped\nescaped: ret", "global symbol escaped"),
]
WIDE_PROBE = "_ZN9quadrille5bench12_GLOBAL__N_16fma512El"
PLANTED_PROGRAM = [
    ("nothing", "", None),
    ("a probe", f"{WIDE_PROBE}: vaddps %zmm0, %zmm1, %zmm2\n ret", None),
    ("a zmm register elsewhere", "elsewhere: vaddps %zmm0, %zmm1, %zmm2\n ret", "in elsewhere"),
    ("a tile elsewhere", "elsewhere: tilezero %tmm0\n ret", "in elsewhere"),
]


def assemble(text, path):
    subprocess.run(["as", "-o", path, "-"], input=text, check=True, text=True)


def unit_text(unit, code, more):
    struct = f"_ZN9quadrille7kernels3cpu10k{unit[:4].title():_<4}PartsE"
    return (f".text\n{unit}_body:\n {code}\n ret\n{more}\n.section .data.rel.ro,\"aw\"\n.globl {struct}\n"
            f"{struct}: .quad {unit}_body\n")


def plant(folder, changed="", code=None, more=""):
    """A source tree and a build folder with one object a unit."""
    entries = []
    for unit, healthy in HEALTHY.items():
        source, path = folder / UNITS / unit / "isa.cpp", folder / f"{unit}.o"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.touch()
        mine = unit == changed
        assemble(unit_text(unit, code if mine and code else healthy, more if mine else ""), path)
        entries.append({"directory": str(folder), "file": str(source), "command": f"c++ -o {unit}.o -c {source}"})
    (folder / "compile_commands.json").write_text(json.dumps(entries))


def expect(what, faults, text):
    good = not faults if text is None else any(text in fault for fault in faults)
    if not good:
        print(f"self-test: planted {what}, expected {text or 'no fault'}, found: {faults}")
    return good


def self_test(tools):
    good = True
    for what, unit, code, more, text in PLANTED:
        with tempfile.TemporaryDirectory() as name:
            plant(Path(name), unit, code, more)
            good &= expect(what, check_units(tools, Path(name), Path(name))[0], text)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plant(folder)
        functions = check_units(tools, folder, folder)[1]
        for what, more, text in PLANTED_PROGRAM:
            assemble(unit_text("avx512", HEALTHY["avx512"], more), folder / "program")
            good &= expect(what + " in the program", check_program(tools, folder / "program", functions), text)
        assemble(".text\nstripped: ret\n", folder / "program")
        good &= expect("a stripped program", check_program(tools, folder / "program", functions), "no function of a unit")
        (folder / "amx.o").unlink()
        good &= expect("a missing object", check_units(tools, folder, folder)[0], "amx: not compiled")
        (folder / UNITS / "neon").mkdir()
        (folder / UNITS / "neon" / "isa.cpp").touch()
        good &= expect("a unit without a rule", check_units(tools, folder, folder)[0], "neon: no rule")
    print(f"self-test: {len(PLANTED) + len(PLANTED_PROGRAM) + 3} plants {'told apart' if good else 'NOT all told apart'}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", nargs="?", type=Path, help="build folder with compile_commands.json")
    parser.add_argument("--program", type=Path, help="also look at this linked program")
    parser.add_argument("--nm", default="nm")
    parser.add_argument("--objdump", default="objdump")
    parser.add_argument("--self-test", action="store_true", help="plant faults and see that each is found")
    tools = parser.parse_args()
    if tools.self_test and not self_test(tools):
        return 1
    if tools.build is None:
        return 0 if tools.self_test else parser.error("name a build folder")
    faults, functions = check_units(tools, tools.build, ROOT)
    if tools.program:
        faults += check_program(tools, tools.program, functions)
    for fault in faults:
        print(fault)
    if not faults:
        print(f"{', '.join(folders_with_sources(ROOT))}: each holds its own instructions and leaves nothing to others")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""_native.pyi is what nanobind makes of the compiled module, and all that is public says what it takes and gives."""
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import quadrille

SOURCE = Path(__file__).resolve().parents[2] / "python" / "quadrille"


def test_the_stub_of_the_extension_is_up_to_date(tmp_path):
    pytest.importorskip("nanobind", reason="nanobind, which makes the stub, is not installed")
    made = tmp_path / "_native.pyi"
    subprocess.run([sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "quadrille._native", "-o", made], check=True)
    head = "# SPDX-License-Identifier: Apache-2.0\n"
    assert (SOURCE / "_native.pyi").read_text() == head + made.read_text(), (
        "make it again: python -m nanobind.stubgen -m quadrille._native, behind the line of the licence")


def public():
    for name in quadrille.__all__:
        value = getattr(quadrille, name)
        if inspect.isfunction(value):
            yield name, value
        elif inspect.ismodule(value):
            for member, function in inspect.getmembers(value, inspect.isfunction):
                if function.__module__ == value.__name__ and not member.startswith("_"):
                    yield f"{name}.{member}", function
        elif inspect.isclass(value):
            for member, function in inspect.getmembers(value):
                if member.startswith("_") and member != "__call__":
                    continue
                function = getattr(function, "fget", None) or getattr(function, "__func__", function)
                if inspect.isfunction(function) and function.__module__.startswith("quadrille"):
                    yield f"{name}.{member}", function


def test_everything_public_has_a_docstring_and_types():
    names = [name for name, _ in public()]
    assert {"Model.generate", "Model.load", "Tokenizer.encode", "plan", "quantize_folder", "scales.split",
            "MoELayer.__call__"} <= set(names)
    for name, function in public():
        assert function.__doc__, f"{name} has no docstring"
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty, f"{name}: no type for what it returns"
        for parameter in signature.parameters.values():
            if parameter.name not in ("self", "cls"):
                assert parameter.annotation is not inspect.Parameter.empty, f"{name}: no type for {parameter.name}"


def test_the_package_is_typed():
    assert (Path(quadrille.__file__).parent / "py.typed").is_file()
    assert (Path(quadrille.__file__).parent / "_native.pyi").is_file()

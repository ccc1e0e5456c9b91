# SPDX-License-Identifier: Apache-2.0
"""The package knows no PyTorch until it is asked for it."""
import subprocess
import sys

import pytest


def _run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


def test_package_imports_no_framework():
    assert _run("import sys, quadrille; print([name for name in ('torch', 'transformers', 'jax', 'numpy') "
                "if name in sys.modules])") == "[]"


@pytest.mark.parametrize("first,second", [("torch", "quadrille"), ("quadrille", "torch")])
def test_package_and_torch_in_either_order(first, second):
    pytest.importorskip("torch")
    assert _run(f"import {first}, {second}, quadrille.torch, torch; print(torch.ops.quadrille.linear.default)"
                ) == "quadrille.linear.default"

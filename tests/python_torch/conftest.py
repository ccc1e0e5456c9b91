# SPDX-License-Identifier: Apache-2.0
"""What the tests beside PyTorch share: no gradients, the examples as modules, and where golden models lie."""
import os
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(_ROOT / "examples" / "python"))  # their plain layer and random weights are the oracle here too


@pytest.fixture(autouse=True)
def _without_gradients():
    try:
        import torch
    except ImportError:  # an environment of JAX alone
        yield
        return
    with torch.no_grad():
        yield


def golden_variants() -> list[tuple[Path, str]]:
    """(folder of a golden model, its W4A8 variant): all where QUADRILLE_GOLDEN is set, else those in the tree."""
    root = Path(os.environ["QUADRILLE_GOLDEN"]) / "models" if os.environ.get("QUADRILLE_GOLDEN") else (
        _ROOT / "tests" / "data" / "models")
    return [(path.parent, path.name) for path in sorted(root.glob("*/w4a8-*"))]

# SPDX-License-Identifier: Apache-2.0
"""`python -m quadrille` becomes the command line program that the package brings (docs/cli.md)."""
from __future__ import annotations

import os
import sys
from pathlib import Path


def program() -> Path:
    """Where the program lies in the installed package."""
    return Path(__file__).resolve().parent / "bin" / "quadrille"


def main() -> int:
    path = program()
    try:
        os.execv(path, [str(path), *sys.argv[1:]])
    except OSError as error:
        print(f"quadrille: cannot start {path}: {error.strerror}; install the package again", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Checks of plain arguments, each an error that names the argument, what is expected and what was found."""
from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, SupportsIndex


def integer(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int of low..high: TypeError for what is no integer, ValueError for one that is outside."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, found {type(value).__name__}") from None
    if not low <= number <= high:
        raise ValueError(f"{name}: expected an integer of {low} to {high}, found {number}")
    return number


def number(name: str, value: Any) -> float:
    """`value` as a float; TypeError for what is no number."""
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value)
    except TypeError:
        raise TypeError(f"{name}: expected a number, found {type(value).__name__}") from None


def text(name: str, value: Any) -> str:
    """`value`, a str; TypeError else."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, found {type(value).__name__}")
    return value


def callback(name: str, value: Any) -> Any:
    """`value`, a function or None; TypeError else."""
    if value is not None and not callable(value):
        raise TypeError(f"{name}: expected a function or None, found {type(value).__name__}")
    return value


def token_ids(name: str, ids: Iterable[SupportsIndex]) -> list[int]:
    """`ids` as a list of int: any iterable of integers (a list, an array, a tensor of rank 1).

    Raises TypeError or ValueError that names `name` and what was found.
    """
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected token ids, found {type(ids).__name__}")
    return [integer(f"{name}[{position}]", value, 0, 2**31 - 1) for position, value in enumerate(values)]

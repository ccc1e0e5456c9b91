# SPDX-License-Identifier: Apache-2.0
# How one arithmetic operation is written out, so that each token needs only a small sub-operation:
# a two-digit factor is split into tens and ones, a division goes digit by digit; a sum, a difference and a product
# with one digit are written in one go. Called by problems.py and multiple_choice.py for every step of every problem.

LIMIT = 99_999  # no number of any problem, given or computed, is larger


def add(a, b):
    """a + b in one go; returns (text, value)."""
    c = a + b
    return f"{a} + {b} = {c}", c


def sub(a, b):
    """a - b in one go, b <= a; returns (text, value)."""
    c = a - b
    return f"{a} - {b} = {c}", c


def mul(a, b):
    """a * b; the factor with more digits is written first, at most 3 x 2 or 5 x 1 digits."""
    if len(str(a)) < len(str(b)):
        a, b = b, a
    c = a * b
    ones = b % 10
    if b > 9 and ones:
        tens = b - ones
        return f"{a} * {b} = {a} * {tens} + {a} * {ones} = {a * tens} + {a * ones} = {c}", c
    return f"{a} * {b} = {c}", c


def long_division(a, d):
    """The lines 'part = quotient digit * d + remainder' of a / d; returns (text, quotient, remainder)."""
    parts = []
    rest = 0
    for digit in str(a):
        rest = rest * 10 + int(digit)
        if rest < d and not parts:
            continue
        q, r = divmod(rest, d)
        parts.append(f"{rest} = {q} * {d} + {r}")
        rest = r
    return ", ".join(parts), a // d, a % d


def div(a, d):
    """a / d without remainder, d in 2..12 or 100; returns (text, value)."""
    if d == 100:
        return f"{a} / 100 = {a // 100}", a // 100
    text, q, _ = long_division(a, d)
    return f"{a} / {d}: {text}, so {a} / {d} = {q}", q


OPERATIONS = {"+": add, "-": sub, "*": mul, "/": div}


def allowed(op, a, b):
    """True if the operation stays inside what working out here covers (range, exactness, factor sizes)."""
    if op == "+":
        return a + b <= LIMIT
    if op == "-":
        return b < a <= LIMIT
    if op == "*":
        big, small = (a, b) if a >= b else (b, a)
        return small >= 1 and big * small <= LIMIT and (small <= 9 or (small <= 99 and big <= 999))
    return a % b == 0 and a <= LIMIT and (2 <= b <= 12 and b != 10 or b == 100)

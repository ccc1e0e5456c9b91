# SPDX-License-Identifier: Apache-2.0
# Ten-option multiple-choice arithmetic (MMLU-Pro's shape): a question, options A to J in random order, a short working,
# the result, the option that starts as it does, and `The answer is (X).`. Called by stream.py (training) and heldout.py (test sets).

from words import GOODS, NAMES
from working import LIMIT, add, div, long_division, mul, sub

LETTERS = "ABCDEFGHIJ"


def product_sum(r):
    a, b, c = r.three(), r.two(), r.some(4)
    t1, p = mul(a, b)
    t2, v = add(p, c)
    return r.pick(["What is {0} * {1} + {2}?", "Compute {0} * {1} + {2}.", "Multiply {0} by {1} and add {2}."]).format(a, b, c), [t1, t2], v, "math"


def product_difference(r):
    a, b = r.three(), r.two()
    c = r.between(10, a * b - 1)
    t1, p = mul(a, b)
    t2, v = sub(p, c)
    return r.pick(["What is {0} * {1} - {2}?", "Compute {0} * {1} - {2}.", "Multiply {0} by {1} and subtract {2}."]).format(a, b, c), [t1, t2], v, "math"


def three_terms(r):
    a, b, c = r.some(5) // 2, r.some(4), r.some(4)
    t1, p = add(a, b)
    if c < p and r.random() < 0.5:
        t2, v = sub(p, c)
        return r.pick(["What is {0} + {1} - {2}?", "Compute {0} + {1} - {2}."]).format(a, b, c), [t1, t2], v, "math"
    t2, v = add(p, c)
    return r.pick(["What is the sum of {0}, {1} and {2}?", "What is {0} + {1} + {2}?"]).format(a, b, c), [t1, t2], v, "math"


def brackets(r):
    a, b, f = r.some(4), r.some(4), r.between(2, 9)
    if a > b and r.random() < 0.5:
        t1, p = sub(a, b)
        sign = "-"
    else:
        t1, p = add(a, b)
        sign = "+"
    t2, v = mul(p, f)
    return r.pick(["What is ({0} {3} {1}) * {2}?", "Compute {2} * ({0} {3} {1})."]).format(a, b, f, sign), [t1, t2], v, "math"


def remainder(r):
    a, b, d = r.some(4), r.some(4), r.pick((3, 4, 5, 6, 7, 8, 9, 11, 12))
    t1, p = add(a, b)
    text, q, rest = long_division(p, d)
    how = r.between(0, 2)
    if how == 0:
        return f"What is the whole-number quotient of {a} + {b} divided by {d}?", [t1, f"{p} / {d}: {text}, quotient {q}"], q, "math"
    if how == 1:
        return f"What is the remainder of {a} + {b} divided by {d}?", [t1, f"{p} / {d}: {text}, remainder {rest}"], rest, "math"
    e = r.between(100, 9000)
    t3, v = add(e, rest)
    return f"What is {e} plus the remainder of {a} + {b} divided by {d}?", [t1, f"{p} / {d}: {text}, remainder {rest}", t3], v, "math"


def quotient_sum(r):
    d, c = r.pick((2, 3, 4, 5, 6, 7, 8, 9, 11, 12)), r.some(4)
    a = d * r.between(20, 8000)
    t1, q = div(a, d)
    t2, v = add(q, c)
    return r.pick(["What is {0} / {1} + {2}?", "Divide {0} by {1} and add {2}."]).format(a, d, c), [t1, t2], v, "math"


def average(r):
    x, y, z = r.between(50, 9000), r.between(50, 9000), r.between(50, 9000)
    z += -(x + y + z) % 3
    t1, p = add(x, y)
    t2, s = add(p, z)
    t3, v = div(s, 3)
    return r.pick(["What is the mean of {0}, {1} and {2}?", "Find the average of the numbers {0}, {1} and {2}."]).format(x, y, z), [t1, t2, t3], v, "math"


def missing_number(r):
    a, v, c = r.some(4), r.digits(2, 4), r.some(4)
    t1, known = add(a, c)
    t2, _ = sub(known + v, known)
    return r.pick(["Which number must replace x in {0} + x + {1} = {2}?", "If {0} + x + {1} = {2}, what is x?"]).format(a, c, known + v), [t1, t2], v, "math"


def sequence(r):
    a, d, n = r.some(4), r.two(), r.between(20, 99)
    t1, m = sub(n, 1)
    t2, p = mul(d, m)
    t3, v = add(a, p)
    return r.pick(["An arithmetic sequence starts with {0} and has the difference {1}. What is its term number {2}?",
                   "The first term of a sequence is {0} and each term is {1} more than the one before. What is term {2}?"]).format(a, d, n), [t1, t2, t3], v, "math"


def perimeter(r):
    a, b, g = r.between(100, 9999), r.between(100, 9999), 2
    name = r.pick(NAMES)
    t1, s = add(a, b)
    t2, v = mul(s, g)
    return r.pick(["A field of {2} is {0} feet long and {1} feet wide. How many feet is its perimeter?",
                   "{2} draws a rectangle with the sides {0} and {1}. What is its perimeter?"]).format(a, b, name), [t1, t2], v, "engineering"


def minutes(r):
    h, m, s = r.between(12, 99), r.between(10, 59), r.between(100, 9999)
    t1, p = mul(h, 60)
    t2, q = add(p, m)
    t3, v = add(q, s)
    name = r.pick(NAMES)
    return r.pick(["A machine of {3} runs for {0} hours and {1} minutes, then for {2} minutes. How many minutes is that?",
                   "{3} works {0} hours, {1} minutes and another {2} minutes. How many minutes is that?"]).format(h, m, s, name), [t1, t2, t3], v, "engineering"


def speed(r):
    a, b, c = r.two(), r.three(), r.between(100, 9999)
    t1, p = mul(b, a)
    t2, v = add(p, c)
    return r.pick(["A body moves at {1} meters per second for {0} seconds, then {2} meters more. How many meters does it cover?",
                   "At {1} meters per second for {0} seconds, starting {2} meters from the origin, how far from the origin is a body?"]).format(a, b, c), [t1, t2], v, "physics"


def profit(r):
    a, b, c, g = r.two(), r.between(12, 99), r.between(100, 999), r.pick(GOODS)
    t1, p = sub(c, b)
    t2, v = mul(p, a)
    return r.pick(["A dealer buys {0} {3} at {1} dollars and sells them at {2} dollars each. What is the profit in dollars?",
                   "What is the gain in dollars on {0} {3} bought at {1} and sold at {2} dollars each?"]).format(a, b, c, g), [t1, t2], v, "business"


def percent(r):
    n, q, g = 100 * r.between(11, 990), r.between(3, 75), r.pick(GOODS)
    c = r.between(100, 9999)
    t1, p = div(n, 100)
    t2, w = mul(p, q)
    t3, v = add(w, c)
    return r.pick(["A tax on {3} is {1} percent of {0} dollars plus a fee of {2} dollars. How many dollars is that?",
                   "What is {1} percent of {0} plus {2}?"]).format(n, q, c, g), [t1, t2, t3], v, "economics"


KINDS = [product_sum, product_difference, three_terms, brackets, remainder, quotient_sum, average, missing_number,
         sequence, perimeter, minutes, speed, profit, percent]


def near_miss(r, v):
    """A wrong value such as a slip gives: another first digit, or two digits exchanged."""
    text = str(v)
    if len(text) > 2 and r.random() < 0.3:
        i = r.between(0, len(text) - 2)
        text = text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    return int(str(r.between(1, 9)) + text[1:])


def options_of(r, v, count):
    """`count` different options; only the right one begins with its digit; (list of strings, index of the right one)."""
    near = r.pick((0.0, 0.3, 0.6, 0.8))  # the part of near misses; the other wrong options are any numbers of this length
    low, high = (0, 99) if v < 100 else (10 ** (len(str(v)) - 1), 10 ** len(str(v)) - 1)
    wrong = []
    while len(wrong) < count - 1:
        w = near_miss(r, v) if r.random() < near else r.between(low, high)
        if str(w)[0] != str(v)[0] and w not in wrong:
            wrong.append(w)
    at = r.between(0, count - 1)
    wrong.insert(at, v)
    return [str(w) for w in wrong], at


def multiple_choice(r, count=10):
    """One question of `count` options: (stem, options, index of the answer, working with the answer line, category)."""
    while True:
        stem, lines, v, category = r.pick(KINDS)(r)
        if 0 <= v <= LIMIT:
            break
    options, at = options_of(r, v, count)
    letter = LETTERS[at]
    lines = [line + "." for line in lines]
    lines.append(f"Result: {v}. Starts with {str(v)[0]}: ({letter}).")
    lines.append(f"The answer is ({letter}).")
    return stem, options, at, "\n".join(lines), category


def render(stem, options):
    """The user message of a question: the layout of MMLU-Pro's own evaluation."""
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options))
    return f"Question:\n{stem}\nOptions:\n{listed}\nAnswer: Let's think step by step."

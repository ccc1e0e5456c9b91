# SPDX-License-Identifier: Apache-2.0
# Word problems of 2 to 6 steps (GSM8K's shape): a schema opens the story, events change the quantity, a question ends
# it; the answer is one line of worked arithmetic per step and then `#### N`. Called by stream.py (training) and
# heldout.py (test sets); everything follows from the random generator that is handed in.

from families import EVENTS, MATERIALS, UNITS
from schemas import SCHEMAS
from words import CONTAINERS, GOODS, GROUPS, NAMES, OBJECTS, PEOPLE, PLACES, SHARES, TIMES
from working import LIMIT, OPERATIONS, allowed

MIN_STEPS, MAX_STEPS = 2, 6
BY_STEPS = {n: [s for s in SCHEMAS if len(s.steps) <= n] for n in range(MIN_STEPS, MAX_STEPS + 1)}
EVENT_KINDS = ["gain", "gain", "lose", "lose", "gainx", "losex", "times", "share", "frac"]
DIVISORS = [2, 3, 4, 5, 6, 7, 8, 9, 11, 12]


class Draw:
    """Random numbers and words from one random.Random."""

    def __init__(self, rng):
        self.random = rng.random

    def between(self, low, high):
        return low + int(self.random() * (high - low + 1))

    def pick(self, items):
        return items[int(self.random() * len(items))]

    def two(self):
        return self.between(12, 99)

    def three(self):
        return self.between(101, 999)

    def digits(self, low, high):
        n = self.between(low, high)
        return self.between(10 ** (n - 1), 10**n - 1)

    def some(self, high):
        """A number of about `high` digits: one less is as likely."""
        return self.digits(high - 1, high)

    def distinct(self, items, n):
        out = []
        while len(out) < n:
            x = self.pick(items)
            if x not in out:
                out.append(x)
        return out


def start_words(r, schema):
    """The words of one story: people, things, places."""
    n, n2, n3 = r.distinct(NAMES, 3)
    c, c2 = r.distinct(CONTAINERS, 2)
    g, g2 = r.distinct(GOODS, 2)
    env = dict(n=n, n2=n2, n3=n3, N=n, N2=n2, o=r.pick(OBJECTS), c=c, c2=c2, g=g, g2=g2, people=r.pick(PEOPLE),
               u=r.pick(UNITS[schema.family]), w=r.pick(MATERIALS), p=r.pick(PLACES))
    if schema.family != "score" and r.random() < 0.25:
        group = r.pick(GROUPS)
        env["n"], env["N"] = "the " + group, "The " + group
    return env


def capitals(env):
    env["O"] = env["o"].capitalize()
    env["U"] = env["u"].capitalize()


def work(label, op, a, b, env, lines):
    """Appends the line of one step; returns its value or None where the working does not cover it."""
    if not allowed(op, a, b):
        return None
    text, value = OPERATIONS[op](a, b)
    lines.append(f"{label.format_map(env)}: {text}.")
    return value


def open_story(r, schema, env, lines):
    """Draws and works the steps of the schema; returns (sentence, value) or None."""
    env.update(schema.draw(r))
    if "d" in env:
        env["s"] = SHARES.get(env["d"], "")
    capitals(env)
    numbers = dict(env)
    value = None
    for i, (label, op, x, y) in enumerate(schema.steps):
        value = work(label, op, numbers[x], numbers[y], env, lines)
        if value is None:
            return None
        numbers[f"s{i + 1}"] = value
    return r.pick(schema.texts).format_map(env), value


def change(r, kind, v, family, env, lines):
    """One event: draws its numbers, works its steps; returns (sentence, value) or None if it does not fit."""
    labels = family["labels"]
    if kind == "gain" or kind == "lose":
        room = LIMIT - v if kind == "gain" else v - 10
        if room < 12:
            return None
        k = env["k"] = min(r.digits(2, len(str(room))), room)
        value = work(labels[kind], "+" if kind == "gain" else "-", v, k, env, lines)
    elif kind == "gainx" or kind == "losex":
        env["a"], env["b"] = r.two(), r.three() if r.random() < 0.5 else r.two()
        env["c"], env["g"], env["people"] = r.pick(CONTAINERS), r.pick(GOODS), r.pick(PEOPLE)
        if kind == "losex" and env["a"] * env["b"] >= v:
            return None
        value = work(labels["x"], "*", env["b"], env["a"], env, lines)
        kind2 = kind[:4]
        value = value and work(labels[kind2], "+" if kind2 == "gain" else "-", v, value, env, lines)
    elif kind == "times":
        env["f"] = r.between(2, 9)
        value = work(labels[kind], "*", v, env["f"], env, lines)
    else:
        fits = [d for d in DIVISORS if v % d == 0 and v > 5 * d and (kind == "share" or d in SHARES)]
        if not fits:
            return None
        env["d"] = r.pick(fits)
        env["s"] = SHARES.get(env["d"], "")
        env["people"] = r.pick(PEOPLE)
        value = work(labels[kind], "/", v, env["d"], env, lines)
        if kind == "frac":
            value = value and work(labels["lose"], "-", v, value, env, lines)
    if value is None:
        return None
    env["C"] = r.pick(TIMES)
    return r.pick(family[kind]).format_map(env), value


def ask(r, kind, v, family, env, lines):
    """The question at the end, with a last step unless it asks for the quantity itself."""
    value = v
    label = family["labels"].get(kind, "")
    if kind == "goal":
        if LIMIT - v < 12:
            return None
        env["t"] = v + r.between(2, LIMIT - v if r.random() < 0.5 else min(LIMIT - v, 4 * v + 50))
        value = work(label, "-", env["t"], v, env, lines)
    elif kind == "price":
        env["q"] = r.two() if v <= 999 else r.between(2, 9)
        value = work(label, "*", v, env["q"], env, lines)
    elif kind == "pack":
        fits = [d for d in DIVISORS if v % d == 0 and v > 5 * d]
        if not fits:
            return None
        env["d"] = r.pick(fits)
        env["people"] = r.pick(PEOPLE)
        value = work(label, "/", v, env["d"], env, lines)
    if value is None:
        return None
    return r.pick(family[kind]).format_map(env), value


def attempt(r, schema, steps):
    """One try at a story of exactly `steps` steps."""
    env, lines = start_words(r, schema), []
    opened = open_story(r, schema, env, lines)
    if opened is None:
        return None
    sentences, value = [opened[0]], opened[1]
    family = EVENTS[schema.family]
    last = r.pick(("now", "now", "goal", "price", "pack")) if steps > len(lines) else "now"
    want = steps - (last != "now")
    while len(lines) < want:
        kind = r.pick(EVENT_KINDS)
        if kind in ("gainx", "losex", "frac") and want - len(lines) < 2:
            continue
        before = len(lines)
        changed = change(r, kind, value, family, env, lines)
        if changed is None:
            if len(lines) > before or r.random() < 0.1:
                return None
            continue
        sentences.append(changed[0])
        value = changed[1]
    asked = ask(r, last, value, family, env, lines)
    if asked is None:
        return None
    sentences.append(asked[0])
    lines.append(f"#### {asked[1]}")
    return " ".join(sentences), "\n".join(lines)


def word_problem(r, steps=None):
    """A problem of `steps` steps (2..6, drawn if None): (question, answer, schema name)."""
    steps = steps or r.between(MIN_STEPS, MAX_STEPS)
    while True:
        schema = r.pick(BY_STEPS[steps])
        made = attempt(r, schema, steps)
        if made:
            return made[0], made[1], schema.name

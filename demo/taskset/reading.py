"""Find, follow and deduce: everything needed is in the question.

The workings quote the sentences that matter, in order, so that each step is one look-up.
"""

import itertools
import json
import random
from typing import Any

from demo.taskset.item import CITIES, COLORS, NAMES, PLACES, WORDS, Item, pick

JOBS = (
    "teacher doctor baker pilot nurse farmer lawyer painter cook driver writer plumber dentist "
    "singer"
).split()
THINGS = "ball book key lamp phone cup hat bag coin pen ring watch map box letter".split()


def person(r: random.Random) -> dict[str, Any]:
    """A made-up record."""
    return {
        "name": r.choice(NAMES),
        "age": r.randint(18, 80),
        "city": r.choice(CITIES),
        "job": r.choice(JOBS),
        "color": r.choice(COLORS),
    }


def extract(r: random.Random, lv: int) -> Item:
    """Read a value from JSON, turn text into JSON, query a few records."""
    if lv == 1:
        p = person(r)
        k = r.choice(list(p))
        ks = r.sample(list(p), 3)
        ks = ks if k in ks else [*ks[:2], k]
        shown = json.dumps({x: p[x] for x in ks})
        return Item(f'Given this JSON, what is the value of "{k}"?\n{shown}', str(p[k]))
    if lv == 2:
        p = person(r)
        q = pick(
            r,
            f"{p['name']} is a {p['age']}-year-old {p['job']} from {p['city']}.",
            f"My name is {p['name']}, I am {p['age']} years old, I live in {p['city']} "
            f"and work as a {p['job']}.",
            f"{p['name']} ({p['age']}) lives in {p['city']}. Job: {p['job']}.",
        )
        ks = ["name", "age", "city", "job"][: r.randint(2, 4)]
        return Item(
            f"Extract {', '.join(ks)} as JSON from this text:\n{q}",
            json.dumps({k: p[k] for k in ks}),
        )
    return query_records(r, (3, 5, 8)[lv - 3])


def query_records(r: random.Random, n: int) -> Item:
    """A question about n records: look-up, oldest, filter by city, count by age."""
    ps = [person(r) for _ in range(n)]
    for p, name in zip(ps, r.sample(NAMES, n), strict=True):
        p["name"] = name
    rows = "\n".join(json.dumps({k: p[k] for k in ("name", "age", "city", "job")}) for p in ps)
    head = f"Here are some records:\n{rows}\n"
    t = r.random()
    p = r.choice(ps)
    if t < 0.4:
        k = r.choice(("age", "city", "job"))
        return Item(f"{head}What is the {k} of {p['name']}?", str(p[k]))
    if t < 0.6:
        o = max(ps, key=lambda x: int(x["age"]))
        if sum(x["age"] == o["age"] for x in ps) == 1:
            working = ", ".join(f"{x['name']} {x['age']}" for x in ps)
            return Item(f"{head}Who is the oldest? Answer with the name.", o["name"], working)
    if t < 0.8:
        q = f"{head}List the names of the people from {p['city']}, separated by commas."
        working = ", ".join(f"{x['name']} {x['city']}" for x in ps)
        return Item(q, ", ".join(x["name"] for x in ps if x["city"] == p["city"]), working)
    return count_older(r, head, [x["age"] for x in ps])


def count_older(r: random.Random, head: str, ages: list[int]) -> Item:
    """How many are older than a bound, ticking them off one by one."""
    a, hits, ticks = r.randint(30, 60), 0, []
    for age in ages:
        hits += age > a
        ticks.append(f"{age} yes {hits}" if age > a else f"{age} no")
    return Item(f"{head}How many people are older than {a}?", str(hits), ", ".join(ticks))


def recall(r: random.Random, lv: int) -> Item:
    """Needle in notes: keep n facts in mind, asked about one; level 5 needs two hops."""
    n = (2, 5, 10, 20, 10)[lv - 1]
    names = r.sample(NAMES, n)
    if lv == 5:
        return recall_two_hops(r, names)
    kind = r.choice(("locker number", "favorite color", "room", "favorite word"))
    v = {
        x: {
            "locker number": str(r.randint(100, 9999)),
            "favorite color": r.choice(COLORS),
            "room": r.choice(PLACES),
            "favorite word": r.choice(WORDS),
        }[kind]
        for x in names
    }
    notes = " ".join(f"{x}'s {kind} is {v[x]}." for x in names)
    x = r.choice(names)
    q = pick(
        r,
        f"{notes}\nWhat is {x}'s {kind}?",
        f"Read the notes and answer.\n{notes}\nQuestion: what is {x}'s {kind}?",
    )
    return Item(q, v[x])


def recall_two_hops(r: random.Random, names: list[str]) -> Item:
    """Who is the boss, and where does the boss live?"""
    boss = {x: r.choice([y for y in names if y != x]) for x in names}
    city = {x: r.choice(CITIES) for x in names}
    notes = [f"{x} works for {boss[x]}." for x in names] + [
        f"{x} lives in {city[x]}." for x in names
    ]
    r.shuffle(notes)
    x = r.choice(names)
    return Item(
        f"{' '.join(notes)}\nIn which city does the boss of {x} live?",
        city[boss[x]],
        f"{x} works for {boss[x]}. {boss[x]} lives in {city[boss[x]]}.",
    )


class Scene:
    """People, places and things; remembers every sentence with what it changed."""

    def __init__(self, people: list[str], where: dict[str, str]) -> None:
        self.people, self.where = people, where
        self.hold: dict[str, str] = {}  # thing -> person
        self.lie: dict[str, str] = {}  # thing -> place
        # sentence, who moved (or ""), which thing changed hands or place (or "")
        self.said: list[tuple[str, str, str]] = []

    def move(self, p: str, place: str, verb: str) -> None:
        self.where[p] = place
        self.said.append((f"{p} {verb} to the {place}.", p, ""))

    def step(self, r: random.Random, things: list[str]) -> None:
        """One random event: a move, a put-down or a hand-over."""
        x = r.random()
        p = r.choice(self.people)
        mine = [t for t in things if self.hold.get(t) == p]
        if x < 0.55 or not mine:
            place = r.choice([y for y in PLACES if y != self.where[p]])
            self.move(p, place, r.choice(("goes", "moves", "walks")))
        elif x < 0.8 or len(self.people) == 1:
            t = r.choice(mine)
            del self.hold[t]
            self.lie[t] = self.where[p]
            self.said.append((f"{p} puts down the {t}.", "", t))
        else:
            t, o = r.choice(mine), r.choice([y for y in self.people if y != p])
            if self.where[o] != self.where[p]:
                self.move(o, self.where[p], "goes")
            self.hold[t] = o
            self.said.append((f"{p} gives the {t} to {o}.", "", t))

    def trace(self, thing: str) -> str:
        """The sentences that decide where `thing` is."""
        holder, out = "", []
        first: dict[str, str] = {}
        for sentence, mover, changed in self.said:
            if changed == thing:
                if not holder:
                    out.append(first[sentence.split()[0]])
                out.append(sentence)
                put_down = "puts down" in sentence
                holder = "-" if put_down else sentence.rstrip(".").split()[-1]
                if "picks up" in sentence:
                    holder = sentence.split()[0]
            elif mover and mover == holder:
                out.append(sentence)
            elif mover and mover not in first:
                first[mover] = sentence
            if not holder and mover:
                first[mover] = sentence
        return " ".join(out)


def track(r: random.Random, lv: int) -> Item:
    """Where is the thing now? lv sets the number of moves."""
    k = (1, 3, 5, 8, 12)[lv - 1]
    everyone = r.sample(NAMES, min(4, 1 + lv))
    things = r.sample(THINGS, min(4, 1 + lv // 2))
    where = {p: r.choice(PLACES) for p in everyone}
    present = everyone[: 1 + k // 3]
    scene = Scene(sorted(present), where)
    for p in present:
        scene.said.append((f"{p} is in the {where[p]}.", p, ""))
    for t in things:
        p = r.choice(scene.people)
        scene.hold[t] = p
        scene.said.append((f"{p} picks up the {t}.", "", t))
    for _ in range(k):
        scene.step(r, things)
    t = r.choice(things)
    q = " ".join(s for s, _, _ in scene.said) + f"\nWhere is the {t}?"
    answer = where[scene.hold[t]] if t in scene.hold else scene.lie[t]
    return Item(q, answer, scene.trace(t))


Expression = bool | tuple[Any, ...]  # True, ("not", e), ("and", e, e), ("or", e, e)


def logic(r: random.Random, lv: int) -> Item:
    """Boolean expressions, or an order to be put together from pairs."""
    if r.random() >= 0.5:
        return ordering(r, (2, 3, 4, 5, 6)[lv - 1])
    e = expression(r, lv)
    s, lines = render(e), []
    while not isinstance(e, bool):
        e = reduced(e)
        lines.append(render(e))
    q = pick(r, f"Evaluate: {s}", f"Is this true or false? {s}", f"What is the value of {s}?")
    return Item(q, str(e), "\n".join(lines) if lv > 1 else None)


def expression(r: random.Random, n: int) -> Expression:
    """A random expression with n operators."""
    if n == 0:
        return r.random() < 0.5
    t = r.random()
    if t < 0.25:
        return ("not", expression(r, n - 1))
    k = r.randint(0, n - 1)
    return ("and" if t < 0.62 else "or", expression(r, k), expression(r, n - 1 - k))


def render(e: Expression) -> str:
    """Text with brackets around every compound part."""
    if isinstance(e, bool):
        return str(e)
    parts = [f"({s})" if " " in s else s for s in map(render, e[1:])]
    return f"not {parts[0]}" if e[0] == "not" else f"{parts[0]} {e[0]} {parts[1]}"


def reduced(e: Expression) -> Expression:
    """Every innermost operator replaced by its value."""
    if isinstance(e, bool):
        return e
    if not all(isinstance(x, bool) for x in e[1:]):
        return (e[0], *(reduced(x) for x in e[1:]))
    if e[0] == "not":
        return not e[1]
    return bool(e[1] and e[2]) if e[0] == "and" else bool(e[1] or e[2])


RELATIONS = (
    ("taller", "shorter", "tallest", "shortest"),
    ("older", "younger", "oldest", "youngest"),
    ("faster", "slower", "fastest", "slowest"),
    ("richer", "poorer", "richest", "poorest"),
)


def ordering(r: random.Random, n: int) -> Item:
    """Pairs in random order; the working turns all one way, then chains them."""
    names = r.sample(NAMES, n)  # the most first
    rel, inv, most, least = r.choice(RELATIONS)
    said = []
    for a, b in itertools.pairwise(names):
        plain = r.random() < 0.6
        said.append((f"{a} is {rel} than {b}." if plain else f"{b} is {inv} than {a}.", a, b))
    r.shuffle(said)
    top = r.random() < 0.5
    q = " ".join(s for s, _, _ in said) + f" Who is the {most if top else least}?"
    working = ", ".join(f"{a} > {b}" for _, a, b in said) + "\n" + " > ".join(names)
    return Item(q, names[0] if top else names[-1], working if n > 2 else None)

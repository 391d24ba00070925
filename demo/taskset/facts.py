"""Facts that must be known or calculated from known rules: countries, elements, units, dates.

Countries come from the CIA World Factbook (public domain), elements from Periodic-Table-JSON
(CC BY-SA 3.0); see demo/README.md.
"""

import datetime
import functools
import json
import random
from pathlib import Path
from typing import Any

from demo.taskset.item import Item, pick

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
WITH_ARTICLE = {
    "United States",
    "United Kingdom",
    "Netherlands",
    "Philippines",
    "Bahamas",
    "Gambia",
    "Maldives",
    "Dominican Republic",
    "Central African Republic",
    "United Arab Emirates",
    "Democratic Republic of the Congo",
    "Republic of the Congo",
    "Solomon Islands",
    "Marshall Islands",
    "Comoros",
    "Seychelles",
    "Congo",
}
CONTINENTS = {
    "africa": "Africa",
    "europe": "Europe",
    "south-america": "South America",
    "north-america": "North America",
    "south-asia": "Asia",
    "east-n-southeast-asia": "Asia",
    "central-asia": "Asia",
    "middle-east": "Asia",
    "australia-oceania": "Oceania",
    "central-america-n-caribbean": "North America",
}
ON_TWO_CONTINENTS = {
    "Russia",
    "Turkey",
    "Turkey (Turkiye)",
    "Cyprus",
    "Egypt",
    "Georgia",
    "Azerbaijan",
    "Kazakhstan",
}


@functools.cache
def facts() -> dict[str, list[dict[str, Any]]]:
    """Countries by population, elements by number; read once, on first use."""
    loaded: dict[str, list[dict[str, Any]]] = json.loads(
        Path(__file__).with_name("facts.json").read_text("utf8")
    )
    return loaded


def the(name: str) -> str:
    return "the " + name if name in WITH_ARTICLE else name


def geo(r: random.Random, lv: int) -> Item:
    """Capitals, currencies, continents, borders; higher levels ask about smaller countries."""
    cs = [c for c in facts()["countries"] if c["population"] > 250000]
    lo, hi = ((0, 25), (15, 60), (45, 100), (85, 140), (120, len(cs)))[lv - 1]
    c = r.choice(cs[lo:hi])
    n, t = c["name"], r.random()
    if t < 0.4:
        forms = (
            f"What is the capital of {the(n)}?|capital of {n}|"
            f"Which city is the capital of {the(n)}?|Name the capital city of {the(n)}."
        )
        return Item(pick(r, *forms.split("|")), c["capital"])
    if t < 0.6:
        city = c["capital"]
        forms = f"{city} is the capital of which country?|Which country has the capital {city}?"
        return Item(pick(r, *forms.split("|")), n)
    if t < 0.75 and c["currency"]:
        forms = f"What is the currency of {the(n)}?|Which currency is used in {the(n)}?"
        return Item(pick(r, *forms.split("|")), c["currency"])
    if t < 0.9:
        region = CONTINENTS.get(c["region"])
        if region and n not in ON_TWO_CONTINENTS:
            forms = f"On which continent is {the(n)}?|Which continent does {the(n)} belong to?"
            return Item(pick(r, *forms.split("|")), region)
    return border(r, lv, c, cs)


def border(r: random.Random, lv: int, c: dict[str, Any], cs: list[dict[str, Any]]) -> Item:
    """Is there a common border? The working lists all neighbours first."""
    n = c["name"]
    near = [x for x in c["neighbours"] if " and " not in x]
    if not near or lv == 5:
        return Item(f"What is the capital of {the(n)}?", c["capital"])
    far = r.choice([x["name"] for x in cs if x["name"] not in c["neighbours"] and x["name"] != n])
    yes = r.random() < 0.5
    x = r.choice(near) if yes else far
    q = f"Does {the(n)} share a border with {the(x)}? Answer yes or no."
    return Item(q, "yes" if yes else "no", f"{n} borders {', '.join(near)}.")


def element(r: random.Random, lv: int) -> Item:
    """Symbols and atomic numbers; higher levels ask about heavier elements."""
    lo, hi = ((1, 11), (8, 27), (24, 55), (50, 87), (80, 119))[lv - 1]
    e = facts()["elements"][r.randrange(lo, hi) - 1]
    n, s, z = e["name"].lower(), e["symbol"], e["number"]
    return r.choice(
        [
            Item(pick(r, f"What is the chemical symbol of {n}?", f"symbol for {n}"), s),
            Item(
                pick(r, f"Which element has the symbol {s}?", f"What element is {s}?"),
                n.capitalize(),
            ),
            Item(f"What is the atomic number of {n}?", str(z)),
            Item(f"Which element has atomic number {z}?", n.capitalize()),
        ]
    )


UNITS = (
    "meters centimeters 100|hours minutes 60|minutes seconds 60|weeks days 7|"
    "kilometers meters 1000|kilograms grams 1000",
    "feet inches 12|yards feet 3|days hours 24|liters milliliters 1000|years months 12|"
    "dollars cents 100",
    "miles feet 5280|hours seconds 3600|pounds ounces 16|gallons quarts 4|weeks hours 168",
)


def number(x: float) -> str:
    """Up to four decimals, no trailing zeros."""
    return f"{x:.4f}".rstrip("0").rstrip(".")


def unit_table(*levels: int) -> list[tuple[str, str, int]]:
    """Rows (large unit, small unit, how many) of the given levels."""
    rows = [x.split() for lv in levels for x in UNITS[lv].split("|")]
    return [(a, b, int(f)) for a, b, f in rows]


def units(r: random.Random, lv: int) -> Item:
    """Conversions; level 4 with fractions and backwards, level 5 with several steps."""
    if lv <= 3:
        a, b, f = r.choice(unit_table(lv - 1))
        x = r.randint(1, (12, 30, 25)[lv - 1])
        q = pick(r, f"How many {b} are in {x} {a}?", f"Convert {x} {a} to {b}.")
        return Item(q, str(x * f))
    if lv == 5:
        return temperature_or_seconds(r)
    a, b, f = r.choice(unit_table(0, 1))
    if r.random() < 0.5:
        x = r.randint(2, 90)
        q = pick(r, f"How many {a} are {x * f} {b}?", f"Convert {x * f} {b} to {a}.")
        return Item(q, str(x), f"{b} to {a}: divide by {f}\n{x * f} / {f} = {x}")
    y = r.randint(1, 20) + r.choice((0.5, 0.25, 0.1, 0.2))
    working = f"{a} to {b}: multiply by {f}\n{number(y)} * {f} = {number(y * f)}"
    return Item(f"Convert {number(y)} {a} to {b}.", number(y * f), working)


def temperature_or_seconds(r: random.Random) -> Item:
    """Celsius to Fahrenheit, or hours, minutes and seconds to seconds."""
    if r.random() < 0.5:
        c = r.randrange(-40, 200, 5)
        f = c * 9 / 5
        working = f"{c} * 9 / 5 = {number(f)}\n{number(f)} + 32 = {number(f + 32)}"
        return Item(f"Convert {c} degrees Celsius to Fahrenheit.", number(f + 32), working)
    h, m = r.randint(1, 12), r.randint(1, 59)
    k = r.randint(1, 20)
    a, b = h * 3600, m * 60
    working = f"{h} * 3600 = {a}\n{m} * 60 = {b}\n{a} + {b} = {a + b}\n{a + b} + {k} = {a + b + k}"
    q = f"How many seconds are in {h} hours, {m} minutes and {k} seconds?"
    return Item(q, str(a + b + k), working)


def dates(r: random.Random, lv: int) -> Item:
    """Weekdays, then calendar dates across months and years."""
    if lv <= 2:
        return weekday_near(r, lv)
    if lv == 3:
        d, k = r.randrange(7), r.randint(8, 60)
        days = ", ".join(DAYS[(d + i) % 7] for i in range(1, k % 7 + 1))
        working = f"{k} = {k // 7} * 7 + {k % 7}" + (f"\n{days}" if days else "")
        return Item(f"Today is {DAYS[d]}. What day is it in {k} days?", DAYS[(d + k) % 7], working)
    y = r.choice((2019, 2020, 2021, 2022, 2023, 2024, 2025, 2028))
    a = datetime.date(y, r.randint(1, 12), r.randint(1, 28))
    k = r.randint(2, 12 if lv == 4 else 75)
    if lv == 4 or r.random() < 0.6:
        s = 1 if r.random() < 0.7 else -1
        b = a + datetime.timedelta(days=s * k)
        q = f"What date is {k} days {'after' if s > 0 else 'before'} {said(a)}?"
        return Item(q, said(b), later(a, k) if s > 0 else earlier(a, k))
    b = a + datetime.timedelta(days=k)
    return Item(f"How many days are there from {said(a)} to {said(b)}?", str(k), between(a, b))


def weekday_near(r: random.Random, lv: int) -> Item:
    """The day before or after, or up to six days on."""
    d = r.randrange(7)
    k = r.randint(1, 1 if lv == 1 else 6)
    if k == 1:
        f = r.random() < 0.5
        way = "after" if f else "before"
        q = pick(r, f"What day comes {way} {DAYS[d]}?", f"Which day is right {way} {DAYS[d]}?")
        return Item(q, DAYS[(d + (1 if f else -1)) % 7])
    q = pick(
        r,
        f"Today is {DAYS[d]}. What day is it in {k} days?",
        f"If today is {DAYS[d]}, what day will it be {k} days from now?",
    )
    return Item(q, DAYS[(d + k) % 7])


def said(x: datetime.date) -> str:
    return f"{MONTHS[x.month - 1]} {x.day}, {x.year}"


def length(y: int, m: int) -> int:
    """Days in month m (1-12) of year y."""
    return 29 if m == 2 and y % 4 == 0 else (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)[m - 1]


def later(a: datetime.date, k: int) -> str:
    """Add to the day, then take whole months off."""
    d, y, m = a.day + k, a.year, a.month
    lines = [f"{a.day} + {k} = {d}"]
    while d > length(y, m):
        n = length(y, m)
        y, m = (y, m + 1) if m < 12 else (y + 1, 1)
        lines.append(f"{d} - {n} = {d - n}, {MONTHS[m - 1]} {y}")
        d -= n
    return "\n".join(lines)


def earlier(a: datetime.date, k: int) -> str:
    """Take from the day, then put whole months on."""
    d, y, m = a.day - k, a.year, a.month
    lines = [f"{a.day} - {k} = {d}"]
    while d < 1:
        y, m = (y, m - 1) if m > 1 else (y - 1, 12)
        n = length(y, m)
        lines.append(f"{d} + {n} = {d + n}, {MONTHS[m - 1]} {y}")
        d += n
    return "\n".join(lines)


def between(a: datetime.date, b: datetime.date) -> str:
    """Days left in the first month, whole months, days of the last month."""
    if (a.year, a.month) == (b.year, b.month):
        return f"{b.day} - {a.day} = {b.day - a.day}"
    y, m = a.year, a.month
    total = length(y, m) - a.day
    lines = [f"{MONTHS[m - 1]}: {length(y, m)} - {a.day} = {total}"]
    while True:
        y, m = (y, m + 1) if m < 12 else (y + 1, 1)
        last = (y, m) == (b.year, b.month)
        n = b.day if last else length(y, m)
        lines.append(f"{MONTHS[m - 1]}: {total} + {n} = {total + n}")
        total += n
        if last:
            return "\n".join(lines)

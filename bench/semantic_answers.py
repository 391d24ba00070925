"""What a model could answer, in many wordings, with the facts of each known exactly.

A *kind* makes facts, changes one of them (a *twin*: another number, sign, unit, name, a negation,
an opposite, two things swapped), and words them. A wording is a sentence in a frame: politeness,
a list, bold type, a paragraph of advice around it, as models have them. All wordings of one kind
are there twice, in two halves that share no sentence and no frame: cache/agree.py may be mended by
looking at the first, and what is published is measured on the second.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Half = Literal["tuned", "held"]
Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """`make` draws facts, `twin` changes one of them; `tuned` and `held` say them."""

    name: str
    make: Callable[[random.Random], Fields]
    twin: Callable[[Fields, random.Random], Fields]
    tuned: tuple[str, ...]
    held: tuple[str, ...]

    def say(self, fields: Fields, half: Half, style: int) -> str:
        """One of the wordings; styles beyond their number begin anew."""
        wordings = self.tuned if half == "tuned" else self.held
        return wordings[style % len(wordings)].format(**_spoken(fields, style))


def _spoken(fields: Fields, style: int) -> dict[str, Any]:
    """A list is told in any order; a yes has the verbs that go with it."""
    spoken = dict(fields)
    if "items" in spoken:
        items = sorted(spoken["items"])
        random.Random(style).shuffle(items)
        spoken["items"] = f"{', '.join(items[:-1])} and {items[-1]}"
        spoken["bullets"] = "\n".join(f"- {item}" for item in items)
    if "yes" in spoken:
        no = "" if spoken["yes"] else " not"
        spoken |= {"can": "can" + no.strip(), "is": "is" + no, "may": "may" + no}
        spoken["yes"] = "No" if no else "Yes"
    return spoken


FRAMES: Mapping[Half, tuple[str, ...]] = {
    "tuned": (
        "{}",
        "Sure! {}",
        "**Answer:** {}",
        "{} Let me know if you need anything else.",
        "- {}",
        "Thank you for your question. {} Please note that details may change, so it is wise to "
        "look at the registrar's page before you decide.",
    ),
    "held": (
        "{}",
        "Of course. {}",
        "Here is what I found:\n\n{}",
        "{} I hope this helps!",
        "> {}",
        "Good question, and one that comes up often. {} If your plans are still open, an adviser "
        "in the department can tell you more about it and help you to choose.",
    ),
}

SUBJECTS: Mapping[Half, tuple[str, ...]] = {
    "tuned": ("For {subject}: {said}", "{said} (This is about {subject}.)"),
    "held": ("Regarding {subject}: {said}", "About {subject}. {said}"),
}


def word(kind: Kind, fields: Fields, half: Half, style: int, subject: str = "") -> str:
    """The answer of one style: a sentence, what it is about if given, and a frame."""
    rng = random.Random(style)
    said = kind.say(fields, half, rng.randrange(1000))
    if subject:
        said = rng.choice(SUBJECTS[half]).format(subject=subject, said=said)
    return rng.choice(FRAMES[half]).format(said)


# --------------------------------------------------------------------------- the kinds


def _choice(**fields: tuple[Any, ...]) -> Callable[[random.Random], Fields]:
    return lambda rng: {name: rng.choice(values) for name, values in fields.items()}


def _other(name: str, values: tuple[Any, ...]) -> Callable[[Fields, random.Random], Fields]:
    return lambda fields, rng: {
        **fields,
        name: rng.choice([value for value in values if value != fields[name]]),
    }


def _swapped(one: str, other: str) -> Callable[[Fields, random.Random], Fields]:
    return lambda fields, _: {**fields, one: fields[other], other: fields[one]}


def _paired(name: str, pairs: tuple[str, ...]) -> Callable[[Fields, random.Random], Fields]:
    """Each of "easier/harder" for the other."""
    halves = [pair.split("/") for pair in pairs]
    across = {a: b for pair in halves for a, b in (pair, reversed(pair))}
    return lambda fields, _: {**fields, name: across[fields[name]]}


NUMBERS = tuple(range(2, 40))
THINGS = ("sections", "labs", "seats", "exams", "lectures")
UNITS = ("minutes/hours", "days/weeks", "kg/lb", "km/miles", "dollars/euros", "mW/MW", "ml/l")
OPPOSITE = (
    "easier/harder", "longer/shorter", "required/optional", "open/closed", "free/paid",
    "online/offline", "new/old", "graded/ungraded",
)  # fmt: skip
FIRST = tuple("Peter David Maria Susan Wei Ahmed Olga James Laura Martin Karl Nina".split())
LAST = tuple("Chen Miller Novak Garcia Smith Haddad Weber Rossi Brown Larsen Kim Okafor".split())
DAYS = tuple("Monday Tuesday Wednesday Thursday Friday Saturday".split())
CODES = tuple(
    f"{department} {number}"
    for department in ("EECS", "MATH", "BIOLOGY", "STATS", "HISTORY")
    for number in (101, 203, 281, 370, 445)
)
WAYS = ("essay", "exam", "project", "presentation", "portfolio", "interview")
PLACES = ("library", "museum", "gym", "chapel", "theatre", "greenhouse")


def _two(values: tuple[Any, ...]) -> Callable[[random.Random], Fields]:
    return lambda rng: dict(zip("ab", rng.sample(values, 2), strict=True))


def _replaced(fields: Fields, rng: random.Random) -> Fields:
    """One item of three is another, or gone."""
    items = sorted(fields["items"])
    items.pop(rng.randrange(len(items)))
    if rng.random() < 0.5:
        items.append(rng.choice([code for code in CODES if code not in fields["items"]]))
    return {"items": frozenset(items)}


def _renamed(fields: Fields, rng: random.Random) -> Fields:
    part, values = rng.choice((("first", FIRST), ("last", LAST)))
    return _other(part, values)(fields, rng)


_unit_words = tuple(unit for pair in UNITS for unit in pair.split("/"))
_opposites = tuple(word for pair in OPPOSITE for word in pair.split("/"))

KINDS: tuple[Kind, ...] = (
    Kind(
        "number",
        _choice(n=NUMBERS, thing=THINGS),
        _other("n", NUMBERS),
        (
            "There are {n} {thing}.",
            "The number of {thing} is {n}.",
            "{n} {thing} in total.",
            "You will find {n} {thing} on the list.",
        ),
        (
            "It has {n} {thing}.",
            "I count {n} {thing}.",
            "Number of {thing}: **{n}**",
            "According to the catalogue the total comes to {n} {thing}.",
        ),
    ),
    Kind(
        "sign",
        _choice(n=NUMBERS, s=("+", "-")),
        _paired("s", ("+/-",)),
        (
            "The average grade changed by {s}{n} points.",
            "The change of the average grade is {s}{n} points.",
            "Average grade: {s}{n} points against last year.",
        ),
        (
            "Against the year before, the mean grade moved by {s}{n} points.",
            "It is a change of {s}{n} points in the mean grade.",
            "Mean grade, change: {s}{n} points",
        ),
    ),
    Kind(
        "unit",
        _choice(n=NUMBERS, unit=_unit_words),
        _paired("unit", UNITS),
        ("The limit is {n} {unit}.", "At most {n} {unit}.", "You may use up to {n} {unit} of it."),
        (
            "No more than {n} {unit} are allowed.",
            "Limit: {n} {unit}",
            "The most that you can have is {n} {unit}.",
        ),
    ),
    Kind(
        "name",
        _choice(first=FIRST, last=LAST),
        _renamed,
        (
            "It is taught by {first} {last}.",
            "The instructor is Prof. {first} {last}.",
            "{first} {last} teaches it.",
            "Prof. {first} {last} gives this class this term.",
        ),
        (
            "{first} {last} is the one who gives it.",
            "Your teacher will be {first} {last}.",
            "Taught by: {first} {last}",
            "The class is in the hands of Dr. {first} {last}.",
        ),
    ),
    Kind(
        "negation",
        _choice(yes=(True, False), who=("undergraduates", "transfer students", "auditors")),
        lambda fields, _: {**fields, "yes": not fields["yes"]},
        (
            "{yes}, {who} {can} take it.",
            "It {is} open to {who}.",
            "{who} {can} enrol in this class.",
        ),
        (
            "{yes}. This class {is} meant for {who}.",
            "The rules say that {who} {may} join.",
            "{yes}, it {is} available to {who}.",
        ),
    ),
    Kind(
        "opposite",
        _choice(w=_opposites),
        _paired("w", OPPOSITE),
        ("The lab is {w}.", "Its lab is {w} this term.", "The lab of this class is {w}."),
        ("As to the lab, it is {w}.", "The lab that belongs to it is {w}.", "Lab: {w}"),
    ),
    Kind(
        "roles",
        _two(CODES),
        _swapped("a", "b"),
        (
            "{a} has to be taken before {b}.",
            "Take {a} first, and {b} afterwards.",
            "{b} comes after {a}.",
            "{a} is a prerequisite of {b}.",
        ),
        (
            "{b} requires {a}.",
            "You need {a} in order to enrol in {b}.",
            "Begin with {a}; {b} follows later.",
            "First {a}, then {b}.",
        ),
    ),
    Kind(
        "swap",
        _two(NUMBERS),
        _swapped("a", "b"),
        (
            "It has {a} lectures and {b} labs.",
            "There are {b} labs and {a} lectures.",
            "You will attend {a} lectures as well as {b} labs.",
        ),
        (
            "Lectures: {a}, labs: {b}.",
            "{a} lectures are held, plus {b} labs.",
            "You get {b} labs besides {a} lectures.",
        ),
    ),
    Kind(
        "code",
        _choice(code=CODES),
        _other("code", CODES),
        (
            "You need {code}.",
            "The prerequisite is {code}.",
            "Please take {code} first.",
            "{code} is what you need.",
        ),
        (
            "{code} is required.",
            "Students must have passed {code}.",
            "Requirement: **{code}**",
            "It asks for {code}.",
        ),
    ),
    Kind(
        "day",
        _choice(day=DAYS),
        _other("day", DAYS),
        ("It meets on {day}.", "The class is on {day}.", "{day} is the day of this class."),
        ("You will meet every {day}.", "It takes place on {day}s.", "Day: {day}"),
    ),
    Kind(
        "way",
        _choice(way=WAYS),
        _other("way", WAYS),
        ("You are graded by {way}.", "The grade rests on one {way}.", "Grading: {way}."),
        ("What counts is the {way}.", "Your mark comes from the {way}.", "There is a final {way}."),
    ),
    Kind(
        "place",
        _choice(place=PLACES),
        _other("place", PLACES),
        ("It is held in the {place}.", "The room is in the {place}.", "Go to the {place}."),
        ("You meet at the {place}.", "The class gathers in the {place}.", "Place: the {place}"),
    ),
    Kind(
        "list",
        lambda rng: {"items": frozenset(rng.sample(CODES, 3))},
        _replaced,
        (
            "You can choose {items}.",
            "The options are {items}.",
            "These classes count:\n{bullets}",
        ),
        (
            "{items} are what you can take.",
            "Choose among {items}.",
            "You have these options:\n\n{bullets}",
        ),
    ),
)


# --------------------------------------------------------------------------- a bank's answers


@dataclass(frozen=True, slots=True)
class Help:
    """What a bank's help page says of one intent."""

    topic: str
    menu: str
    days: int
    fee: int
    allowed: bool


MENUS = ("Cards", "Payments", "Profile", "Security", "Transfers", "Limits", "Help", "Accounts")


def help_of(intent: str) -> Help:
    """Facts drawn by the intent's name, always the same."""
    rng = random.Random(intent)
    topic = intent.replace("_", " ").strip("?").lower()
    fee = rng.choice((1, 2, 3, 5, 10))
    return Help(topic, rng.choice(MENUS), rng.randint(1, 14), fee, rng.random() < 0.5)


_BANK: Mapping[Half, tuple[tuple[str, ...], ...]] = {
    "tuned": (
        ("You asked about {topic}.", "This is about {topic}.", "On {topic}:"),
        ("Open {menu} in the app.", "In the app, go to {menu}.", "You find it under {menu}."),
        ("It takes {days} working days.", "Allow {days} working days.", "Ready in {days} days."),
        ("It costs £{fee}.", "We charge £{fee} for it.", "The fee is £{fee}."),
        ("You {can} undo it later.", "It {can} be undone.", "Undoing it {is} possible."),
    ),
    "held": (
        ("Here is how {topic} works.", "Your question is about {topic}.", "Regarding {topic}:"),
        ("Tap {menu} in our app.", "The app has it under {menu}.", "Start at {menu} in the app."),
        ("Expect {days} working days.", "It is done after {days} days.", "Duration: {days} days."),
        ("There is a fee of £{fee}.", "You pay £{fee}.", "Price: £{fee}."),
        ("Reversing it {is} possible.", "You {can} take it back.", "It {can} be reversed."),
    ),
}


def help_said(page: Help, half: Half, style: int) -> str:
    """All facts of a page in one style: after the first, its sentences come in any order."""
    rng = random.Random(style)
    fields = {
        "topic": page.topic,
        "menu": page.menu,
        "days": page.days,
        "fee": page.fee,
        "can": "can" if page.allowed else "cannot",
        "is": "is" if page.allowed else "is not",
    }
    lead, *rest = (rng.choice(wordings).format(**fields) for wordings in _BANK[half])
    rng.shuffle(rest)
    return rng.choice(FRAMES[half]).format(" ".join([lead, *rest]))

"""Letters, lists, formats and made-up dictionaries.

Tokens hide letters, so the workings spell words out before they count, index or reverse them.
"""

import random

from demo.taskset.item import WORDS, Item, pick


def reverse(r: random.Random, lv: int) -> Item:
    """Spell backwards, spell with hyphens, find the n-th letter."""
    k = r.randint(*((3, 3), (4, 5), (6, 7), (8, 10), (11, 16))[lv - 1])
    pool = [w for w in WORDS if len(w) == k]
    w = (
        r.choice(pool)
        if pool and r.random() < 0.5
        else "".join(r.choice("abcdefghijklmnoprstuvw") for _ in range(k))
    )
    t = r.random()
    spelled = "-".join(w)
    if t < 0.5:
        forms = f'Reverse the word "{w}".|Write "{w}" backwards.|Spell {w} backwards.|reverse {w}'
        working = f"{spelled} -> {'-'.join(w[::-1])}" if lv > 1 else None
        return Item(pick(r, *forms.split("|")), w[::-1], working)
    if t < 0.75:
        forms = (
            f'Spell the word "{w}" with hyphens between the letters.|'
            f"Spell {w} letter by letter with hyphens."
        )
        return Item(pick(r, *forms.split("|")), spelled)
    i = r.randint(1, k)
    o = {1: "st", 2: "nd", 3: "rd"}.get(i if i < 10 or i > 20 else i % 10, "th")
    forms = f'What is the {i}{o} letter of "{w}"?|Which letter is number {i} in the word {w}?'
    working = " ".join(f"{j} {c}" for j, c in enumerate(w[:i], 1)) if lv > 1 else None
    return Item(pick(r, *forms.split("|")), w[i - 1], working)


def running(xs: list[str], wanted: str) -> str:
    """The list again, with a running count after each hit."""
    out, n = [], 0
    for x in xs:
        n += x == wanted
        out.append(f"{x} {n}" if x == wanted else x)
    return ", ".join(out)


def count(r: random.Random, lv: int) -> Item:
    """Count letters in a word, words in a list, or one word's occurrences."""
    n = (3, 5, 8, 12, 18)[lv - 1]
    if r.random() < 0.5:
        w = (
            r.choice(WORDS)
            if lv < 3
            else "".join(r.choice("aabbccdeeeilmnoorsstt") for _ in range(n))
        )
        c = r.choice(w)
        forms = (
            f'How many times does the letter {c} occur in "{w}"?|'
            f"Count the letter {c} in the word {w}.|How many {c}'s are in {w}?"
        )
        return Item(pick(r, *forms.split("|")), str(w.count(c)), running(list(w), c))
    xs = [r.choice(WORDS[:12] if lv > 2 else WORDS) for _ in range(r.randint(max(2, n - 2), n))]
    if lv > 2 and r.random() < 0.6:
        c = r.choice(xs)
        q = f'How many times does "{c}" appear in this list? {", ".join(xs)}'
        return Item(q, str(xs.count(c)), running(xs, c))
    joined = ", ".join(xs)
    q = pick(r, f"How many words are in this list: {joined}?", f"Count the items: {joined}")
    return Item(q, str(len(xs)), ", ".join(f"{x} {i}" for i, x in enumerate(xs, 1)))


def sort(r: random.Random, lv: int) -> Item:
    """Sort numbers or words, or find the largest or smallest."""
    n = (3, 4, 6, 8, 12)[lv - 1]
    if r.random() >= 0.5:
        words = r.sample(WORDS, n)
        given = ", ".join(words)
        forms = (
            f"Sort these words alphabetically: {given}|"
            f"Put these words in alphabetical order: {given}"
        )
        return Item(pick(r, *forms.split("|")), ", ".join(sorted(words)))
    xs = [r.randint(0, 10 ** min(4, lv + 1)) for _ in range(n)]
    t, shown = r.random(), ", ".join(map(str, xs))
    if t < 0.25:
        return Item(f"What is the largest of these numbers: {shown}?", str(max(xs)))
    if t < 0.4:
        return Item(f"What is the smallest of these numbers: {shown}?", str(min(xs)))
    up = r.random() < 0.7
    way = "smallest to largest" if up else "largest to smallest"
    return Item(
        f"Sort these numbers from {way}: {shown}",
        ", ".join(map(str, sorted(xs, reverse=not up))),
    )


SYLLABLES = [a + b for a in "b d f g k l m n p r s t v z".split() for b in "a e i o u".split()]
NOUNS = "dog cat bird fish tree house man woman child king river stone book star horse".split()
VERBS = "sees likes finds eats follows helps carries".split()
ADJECTIVES = "big small red old new happy fast cold".split()
PATTERNS = ("N", "A N", "N V N", "A N V A N", "A N V A N and N")


def cipher(r: random.Random, lv: int) -> Item:
    """Translate with a made-up dictionary given in the question, word by word."""
    kinds = {"N": NOUNS, "A": ADJECTIVES, "V": VERBS}
    ws = [
        {"N": r.choice(NOUNS), "A": r.choice(ADJECTIVES), "V": r.choice(VERBS)}.get(p, p)
        for p in PATTERNS[lv - 1].split()
    ]
    extra = r.sample(kinds["N"] + kinds["V"] + kinds["A"], lv + 1)
    vocab = sorted(set(ws + extra))
    r.shuffle(vocab)
    made: dict[str, str] = {}
    used: set[str] = set()
    for w in vocab:
        z = ""
        while not z or z in used:
            z = "".join(r.choice(SYLLABLES) for _ in range(r.randint(2, 3)))
        used.add(z)
        made[w] = z
    table = ", ".join(f"{w} = {made[w]}" for w in vocab)
    foreign, english = " ".join(made[w] for w in ws), " ".join(ws)
    if r.random() < 0.6:
        working = "\n".join(f"{w} = {made[w]}" for w in ws)
        return Item(f"Dictionary: {table}.\nTranslate: {english}", foreign, working)
    working = "\n".join(f"{made[w]} is {w}" for w in ws)
    return Item(f"Dictionary: {table}.\nTranslate back to English: {foreign}", english, working)


OPERATIONS = ("upper", "exclaim", "semicolon", "number", "first", "last", "double")
SAID = {
    "upper": "in capital letters",
    "exclaim": "with an exclamation mark after each word",
    "semicolon": "separated by semicolons",
    "number": "numbered from 1",
    "first": "without the first word",
    "last": "without the last word",
    "double": "each word twice",
}


def form(r: random.Random, lv: int) -> Item:
    """Follow a format exactly; lv sets the number of operations."""
    xs = r.sample(WORDS, r.randint(2, 2 + lv))
    ops = r.sample(OPERATIONS, lv if lv < 4 else lv - 1)
    if "first" in ops and "last" in ops:
        ops.remove("last")
    ys, lines = xs, []
    for o in ops:
        if o not in ("semicolon", "number"):
            ys = apply(o, ys)
            lines.append(" ".join(ys))
    if "number" in ops:
        ys = [f"{i}. {y}" for i, y in enumerate(ys, 1)]
    answer = ("; " if "semicolon" in ops else " ").join(ys)
    q = f"Write these words {', '.join(SAID[o] for o in ops)}: {' '.join(xs)}"
    return Item(q, answer, "\n".join(lines) if len(ops) > 1 and lines else None)


def apply(operation: str, ys: list[str]) -> list[str]:
    """One word-changing operation of `form`."""
    if operation == "upper":
        return [y.upper() for y in ys]
    if operation == "exclaim":
        return [y + "!" for y in ys]
    if operation == "first":
        return ys[1:]
    if operation == "last":
        return ys[:-1]
    return [z for y in ys for z in (y, y)]

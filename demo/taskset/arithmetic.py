"""Sums, products, word problems, sequences, comparisons.

A small model cannot add eight digits at one glance: the answer's first digit depends on carries
from the last. So the workings go column by column, right to left, as taught at school, and each
line needs only facts that fit in one glance.
"""

import itertools
import random

from demo.taskset.item import NAMES, Item, digits, pick

ITEMS = (
    "apples books coins marbles pencils stickers cards eggs cookies flowers stamps tickets shells "
    "buttons cups balloons oranges stones keys candles"
).split()


def columns_sum(a: int, b: int) -> str:
    """Column addition, right to left: digit + digit + carry = sum."""
    x, y, carry, out = str(a)[::-1], str(b)[::-1], 0, []
    for i in range(max(len(x), len(y))):
        p, q = int(x[i : i + 1] or 0), int(y[i : i + 1] or 0)
        out.append(f"{p}+{q}+{carry}={p + q + carry}")
        carry = (p + q + carry) // 10
    return " ".join(out)


def columns_difference(a: int, b: int) -> str:
    """Column subtraction for a >= b; a borrowed ten shows in the first number (13-7-0=6)."""
    x, y, borrow, out = str(a)[::-1], str(b)[::-1], 0, []
    for i in range(len(x)):
        p, q = int(x[i]), int(y[i : i + 1] or 0)
        borrowed = p < q + borrow
        p += 10 * borrowed
        out.append(f"{p}-{q}-{borrow}={p - q - borrow}")
        borrow = int(borrowed)
    return " ".join(out)


def digit_product(a: int, d: int) -> str:
    """a times one digit: digit * d + carry = product."""
    carry, out = 0, []
    for c in str(a)[::-1]:
        out.append(f"{c}*{d}+{carry}={int(c) * d + carry}")
        carry = (int(c) * d + carry) // 10
    return " ".join(out)


def long_division(n: int, b: int) -> str:
    """School division from the left: part=divisor*digit+rest."""
    part, out = 0, []
    for c in str(n):
        part = part * 10 + int(c)
        if part < b and not out:
            continue
        out.append(f"{part}={b}*{part // b}+{part % b}")
        part %= b
    return " ".join(out)


def add(r: random.Random, lv: int) -> Item:
    """Sums and differences of 1, 2, 3, 5, 8 digits."""
    n = (1, 2, 3, 5, 8)[lv - 1]
    a, b = digits(r, n), digits(r, r.randint(max(1, n - 1), n))
    if r.random() < 0.5:
        forms = (
            f"What is {a} + {b}?|{a} + {b} =|Add {a} and {b}.|Calculate {a} + {b}.|{a}+{b}|"
            f"What is the sum of {a} and {b}?"
        )
        return Item(pick(r, *forms.split("|")), str(a + b), columns_sum(a, b) if lv > 2 else None)
    a, b = max(a, b), min(a, b)
    forms = (
        f"What is {a} - {b}?|{a} - {b} =|Subtract {b} from {a}.|Calculate {a} - {b}.|{a}-{b}|"
        f"What is {a} minus {b}?"
    )
    return Item(
        pick(r, *forms.split("|")), str(a - b), columns_difference(a, b) if lv > 2 else None
    )


def mul(r: random.Random, lv: int) -> Item:
    """Products up to 3 x 2 digits, and exact divisions."""
    if (lv <= 2 and r.random() < 0.4) or (lv > 2 and r.random() < 0.3):
        b = r.randint(2, 9 if lv < 4 else 25)
        x = digits(r, (1, 1, 2, 3, 4)[lv - 1]) or 1
        n = b * x
        forms = f"What is {n} / {b}?|Divide {n} by {b}.|{n} divided by {b}|Calculate {n} / {b}."
        return Item(pick(r, *forms.split("|")), str(x), long_division(n, b) if lv > 2 else None)
    size_a, size_b = ((1, 1), (2, 1), (3, 1), (2, 2), (3, 2))[lv - 1]
    a, b = digits(r, size_a), digits(r, size_b)
    forms = (
        f"What is {a} * {b}?|{a} x {b} =|Multiply {a} by {b}.|Calculate {a} * {b}.|"
        f"What is {a} times {b}?"
    )
    return Item(pick(r, *forms.split("|")), str(a * b), product_working(a, b, lv))


def product_working(a: int, b: int, lv: int) -> str | None:
    """Partial products, then their sum in columns."""
    if lv < 3:
        return None
    if b < 10:
        return digit_product(a, b)
    tens, ones = b // 10, b % 10
    lines = [f"{a}*{tens}0: {digit_product(a, tens)} = {a * tens * 10}"]
    if ones:
        lines.append(f"{a}*{ones}: {digit_product(a, ones)} = {a * ones}")
        lines.append(columns_sum(a * tens * 10, a * ones))
    return "\n".join(lines)


def story(r: random.Random, lv: int) -> Item:
    """Word problems with lv steps."""
    n1, n2 = r.sample(NAMES, 2)
    it = r.choice(ITEMS)
    cur = r.randint(5, 20 * lv)
    q, lines = f"{n1} has {cur} {it}.", []
    for _ in range(lv):
        said, line, cur = story_step(r, lv, cur, (n1, n2, it))
        q += said
        lines.append(line)
    q += pick(r, f" How many {it} does {n1} have now?", f" How many {it} are left with {n1}?")
    return Item(q, str(cur), "\n".join(lines))


def story_step(
    r: random.Random, lv: int, cur: int, who: tuple[str, str, str]
) -> tuple[str, str, int]:
    """One event: its sentence, its line of working, the new number."""
    n1, n2, it = who
    k = r.random()
    if k < 0.35:
        x = r.randint(2, 20 * lv)
        said = pick(
            r, f" {n2} gives {n1} {x} more.", f" {n1} buys {x} more.", f" Then {n1} finds {x} more."
        )
        return said, f"{cur} + {x} = {cur + x}", cur + x
    if k < 0.75 and cur > 3:
        x = r.randint(1, cur - 1)
        said = pick(r, f" {n1} gives {x} to {n2}.", f" {n1} loses {x}.", f" Then {n1} sells {x}.")
        return said, f"{cur} - {x} = {cur - x}", cur - x
    if k < 0.9 or cur % 2:
        x = r.randint(2, 4)
        times = ("", "", "two", "three", "four")[x]
        said = f" Then the number of {it} becomes {times} times as large."
        return said, f"{cur} * {x} = {cur * x}", cur * x
    return f" Then {n1} gives away half of them.", f"{cur} / 2 = {cur // 2}", cur // 2


def sequence(r: random.Random, lv: int) -> Item:
    """Which number comes next? Differences first, then the rule."""
    a = r.randint(1, 40 * lv)
    xs, rule = even_steps(r, lv, a) if lv <= 3 else growing(r, a) if lv == 4 else self_referring(r)
    s = ", ".join(map(str, xs[:-1]))
    q = pick(
        r,
        f"What number comes next? {s}, ...",
        f"Continue the sequence with one number: {s}",
        f"Next number: {s}, ?",
    )
    return Item(q, str(xs[-1]), sequence_working(xs, rule))


def even_steps(r: random.Random, lv: int, a: int) -> tuple[list[int], str]:
    """a, a + d, a + 2d, ..."""
    if lv <= 2:
        d = r.randint(1, 5 * lv)
        return [a + d * i for i in range(5)], "add"
    d = r.randint(3, 25) * r.choice((1, -1))
    return [a + 100 + d * i for i in range(5)], "add"


def growing(r: random.Random, a: int) -> tuple[list[int], str]:
    """A geometric sequence, or steps that grow by one."""
    if r.random() < 0.5:
        m = r.randint(2, 4)
        xs = [r.randint(1, 6)]
        for _ in range(4):
            xs.append(xs[-1] * m)
        return xs, f"times {m}"
    d = r.randint(1, 6)
    xs = [a]
    for i in range(4):
        xs.append(xs[-1] + d + i)
    return xs, "step"


def self_referring(r: random.Random) -> tuple[list[int], str]:
    """Sum of the last two, or times m plus d."""
    if r.random() < 0.5:
        xs = [r.randint(1, 9), r.randint(1, 9)]
        while len(xs) < 6:
            xs.append(xs[-1] + xs[-2])
        return xs, "sum"
    m, d = r.randint(2, 3), r.randint(1, 5)
    xs = [r.randint(1, 5)]
    for _ in range(4):
        xs.append(xs[-1] * m + d)
    return xs, f"times {m}"


def sequence_working(xs: list[int], rule: str) -> str:
    """Differences of the shown numbers, the next difference, the next number."""
    gaps = [b - a for a, b in itertools.pairwise(xs)]
    lines = [f"Differences: {', '.join(map(str, gaps[:-1]))}"]
    if rule == "sum":
        return f"{lines[0]}\nEach is the sum of the last two.\n{xs[-3]} + {xs[-2]} = {xs[-1]}"
    if rule.startswith("times"):
        m = int(rule.split()[1])
        lines.append(f"Next difference: {gaps[-2]} * {m} = {gaps[-1]}")
    else:
        lines.append(f"Next difference: {gaps[-1]}")
    return "\n".join([*lines, f"{xs[-2]} + {gaps[-1]} = {xs[-1]}"])


def compare(r: random.Random, lv: int) -> Item:
    """Which of two numbers is larger or smaller; level 5 compares fractions."""
    a: float
    b: float
    if lv == 1:
        a, b = r.sample(range(100), 2)
    elif lv == 2:
        a, b = r.sample(range(100, 10000), 2)
    elif lv == 3:
        a, b = (x / 10 for x in r.sample(range(1, 100), 2))
    elif lv == 4:
        a, b = round(r.random(), r.randint(1, 2)), round(r.random(), r.randint(2, 3))
    else:
        return compare_fractions(r)
    if a == b:
        b += 0.001
    g = r.random() < 0.5
    q = pick(
        r,
        f"Which number is {'larger' if g else 'smaller'}, {a:g} or {b:g}?",
        f"Which is {'bigger' if g else 'smaller'}: {a:g} or {b:g}?",
    )
    return Item(q, f"{max(a, b) if g else min(a, b):g}")


def compare_fractions(r: random.Random) -> Item:
    """Bring both to the product of the denominators."""
    d = r.sample(range(2, 13), 2)
    n = [r.randint(1, x - 1) for x in d]
    if n[0] * d[1] == n[1] * d[0]:
        n[0] = n[0] % (d[0] - 1) + 1 if d[0] > 2 else n[0]
    x, y = n[0] * d[1], n[1] * d[0]
    left, right = f"{n[0]}/{d[0]}", f"{n[1]}/{d[1]}"
    ans = "equal" if x == y else (left if x > y else right)
    w = f"{left} = {x}/{d[0] * d[1]}\n{right} = {y}/{d[0] * d[1]}"
    return Item(f"Which is larger, {left} or {right}?", ans, w)

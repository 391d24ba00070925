"""What can be read off two texts that an embedding blurs.

A sentence embedding is proud of saying that "enable 2FA" and "disable 2FA" are the same thing. The
slips have a small grammar: another number or another sign between two, a negation on one side, an
antonym, another name, the same words in another order. Each is cheap to see in the texts
themselves.

Choice: they are *features*, never vetoes. As vetoes they cut wrong hits by four fifths where
questions carry slots, and double them where people describe the same illness in other details
(measured; see cache/verify.py), so each namespace learns what each of them is worth to it.
`vetoed` keeps the veto, because the fixed-threshold policies that we compare with use it.

Price: some 25 us to read a question, 5 us to compare two.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

WORD = re.compile(r"[^\W\d_][+#]{1,2}(?![^\W_])|[^\W_]+(?:['’][^\W\d_]+)?|[^\w\s]", re.UNICODE)
"""C++ and F# are words, too."""

OPERATOR = re.compile(
    r"[+=<>%^×÷±√$€£¥]|(?<!\*)\*(?!\*)|(?<![^\W\d_])/(?![^\W\d_])|(?<![^\W\d_])[-−](?=\s?[\d.$€£(])"
)
"""Signs that change what is said: 7 - 5, 5 %, x = y. Not hyphens, bullets, slashes between words
and emphasis (**so**)."""
SYMBOLS = frozenset({"So", "Sm"})
"""Unicode's categories of emoji and of the signs of mathematics and logic. An embedder takes those
that it does not know for one and the same, so that ∀ would be ∃: here they are names."""
BULLET = re.compile(r"^[ \t]*[-*+•][ \t]+", re.MULTILINE)

NUMBER_WORDS = {
    word: str(value)
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen twenty".split()
    )
} | dict(
    zip(
        "thirty forty fifty sixty seventy eighty ninety hundred thousand million half twice "
        "first second third once double triple dozen".split(),
        "30 40 50 60 70 80 90 100 1000 1000000 0.5 2 1 2 3 1 2 3 12".split(),
        strict=True,
    )
)

NEGATIONS = frozenset(
    "not no never none nobody nothing nowhere neither nor without cannot cant except unless "
    "dont doesnt didnt isnt arent wasnt werent wont wouldnt shouldnt couldnt hasnt havent".split()
)

ANTONYMS = {
    left: right
    for pair in (
        "enable/disable on/off open/close start/stop begin/end add/remove increase/decrease "
        "more/less most/least max/min maximum/minimum before/after above/below over/under "
        "up/down in/out into/from to/from buy/sell send/receive deposit/withdraw lock/unlock "
        "install/uninstall activate/deactivate subscribe/unsubscribe allow/deny allow/forbid "
        "accept/reject accept/refuse include/exclude include/without import/export encrypt/decrypt "
        "upload/download push/pull read/write create/delete create/destroy connect/disconnect "
        "attach/detach show/hide true/false yes/no always/never all/none hot/cold high/low "
        "higher/lower highest/lowest big/small large/small larger/smaller largest/smallest "
        "long/short longer/shorter longest/shortest fast/slow faster/slower early/late "
        "earlier/later earliest/latest first/last old/new older/newer oldest/newest easy/hard "
        "easier/harder easiest/hardest easy/difficult good/bad better/worse best/worst "
        "cheap/expensive cheapest/priciest safe/dangerous legal/illegal public/private "
        "morning/evening morning/afternoon day/night today/tomorrow yesterday/tomorrow "
        "left/right north/south east/west male/female men/women man/woman boy/girl "
        "husband/wife mother/father win/lose gain/lose rise/fall credit/debit borrow/lend "
        "arrive/depart enter/leave enter/exit past/future next/previous next/last "
        "positive/negative success/failure pass/fail input/output client/server parent/child "
        "undergraduate/graduate undergrad/graduate undergrad/grad undergraduates/graduates "
        "required/optional mandatory/optional with/without some/any many/few virtual/physical "
        "plus/minus added/subtracted multiply/divide multiplied/divided sum/difference"
    ).split()
    for left, right in (pair.split("/"), reversed(pair.split("/")))
}
"""One opposite per word is enough: a swap shows from whichever side has its word listed last."""

FEATURES = (
    "number", "negation", "antonym", "names", "name", "order", "jaccard", "missing", "added",
    "length", "question",
)  # fmt: skip

QUESTION_WORDS = frozenset("who what when where why which how whose whom can do does is".split())


@dataclass(frozen=True, slots=True)
class Facts:
    """What one text says, read once. `words` are lower-case and in order."""

    words: tuple[str, ...]
    bag: frozenset[str]
    numbers: frozenset[str]
    names: frozenset[str]
    question: str
    negated: bool


def read(text: str) -> Facts:
    """The facts of `text`."""
    text = BULLET.sub("", text)
    words: list[str] = []
    names: list[str] = []
    numbers: list[str] = []
    negated, before = False, "."
    for match in WORD.finditer(text):
        word, last = match[0], before
        before = word
        if not (word.isalpha() and word.islower()):  # most words are, and quick to see
            if _is_name(word, starts=last in ".?!:"):
                names.append(word.lower())
            if not (word[0].isalnum() or _is_symbol(word) or OPERATOR.match(text, match.start())):
                continue
            word = word.lower().replace("’", "'")
            if _counts(word):
                numbers.append(word)
        words.append(word)
        negated ^= _negates(word)
        if word in NUMBER_WORDS and word != "one":  # which is mostly a pronoun
            numbers.append(NUMBER_WORDS[word])
    return Facts(
        words=tuple(words),
        bag=frozenset(words),
        numbers=frozenset(numbers),
        names=frozenset(names),
        question=next((word for word in words if word in QUESTION_WORDS), ""),
        negated=negated,
    )


def _is_name(word: str, *, starts: bool) -> bool:
    """Capitals inside a sentence, or more than one of them, or letters mixed with digits."""
    if _is_symbol(word):
        return True
    capitals = sum(map(str.isupper, word))
    if capitals > 1:
        return True
    if any(map(str.isdigit, word)) and any(map(str.isalpha, word)):
        return True
    return capitals == 1 and len(word) > 1 and word[0].isupper() and not starts


def _is_symbol(word: str) -> bool:
    return unicodedata.category(word[0]) in SYMBOLS and not OPERATOR.match(word)


def _counts(word: str) -> bool:
    """Whether it begins with a digit, a fraction such as ½, or is an operator."""
    if word[0].isalnum():
        return unicodedata.category(word[0]) in {"Nd", "No", "Nl"}
    return not _is_symbol(word)


def negations(facts: Facts) -> int:
    """How many words negate."""
    return sum(map(_negates, facts.words))


def _negates(word: str) -> bool:
    return word in NEGATIONS or word.endswith("n't")


def compare(asked: Facts, kept: Facts) -> tuple[float, ...]:
    """The features named in FEATURES, each in about 0..1; 0 means "no sign of a difference"."""
    missing = asked.bag - kept.bag
    added = kept.bag - asked.bag
    shared = len(asked.bag) - len(missing)
    union = max(1, shared + len(missing) + len(added))
    shorter, longer = sorted((len(asked.words) + 1, len(kept.words) + 1))
    return (
        float(asked.numbers != kept.numbers),
        float(asked.negated != kept.negated),
        float(_opposite(missing, added)),
        float(bool(asked.names - kept.bag) and bool(kept.names - asked.bag)),
        float(bool(asked.names - kept.bag) or bool(kept.names - asked.bag)),
        float(_reordered(asked, kept, missing, added)),
        1.0 - shared / union,
        min(1.0, len(missing) / 8),
        min(1.0, len(added) / 8),
        1.0 - shorter / longer,
        float(asked.question != kept.question),
    )


def vetoed(pair: tuple[float, ...]) -> bool:
    """Whether a hard sign of `compare` fires: number, negation, antonym, both names, order."""
    number, negation, antonym, names, _, order, *_ = pair
    return bool(number or negation or antonym or names or order)


def _opposite(missing: frozenset[str], added: frozenset[str]) -> bool:
    for word in missing:
        other = ANTONYMS.get(word)
        if other in added or f"un{word}" in added or f"dis{word}" in added:
            return True
    return any(
        ANTONYMS.get(word) in missing or f"un{word}" in missing or f"dis{word}" in missing
        for word in added
    )


def _reordered(asked: Facts, kept: Facts, missing: frozenset[str], added: frozenset[str]) -> bool:
    return not missing and not added and asked.words != kept.words

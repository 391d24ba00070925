"""What a family returns, and the word lists that the families share."""

import random
from collections.abc import Callable
from typing import NamedTuple

WORDS = """
apple river window garden yellow planet silver button forest letter market winter summer orange
pencil kitchen basket bridge castle dragon engine farmer guitar hammer island jacket kettle
ladder mirror needle office pepper quartz rabbit saddle table umbrella valley wagon zebra anchor
bottle candle desert eagle feather glove harbor insect jungle kitten lemon magnet napkin ocean
paper queen rocket school ticket uncle violin water yogurt bread chair door earth flower glass
horse ice jar key lamp moon nest onion piano quilt rain star tree vase wheel box cloud drum egg
fish goat hat ink jam kite leaf map nut oil pig road sand train unit vine wolf yard ant ball cat
dog ear fox hill jet king lion milk net owl pan rope snow tent urn van web year zoo bird cake
desk fan gold house mouse plate shirt spoon stone storm sugar teacher tiger towel tower village
wallet whistle
""".split()
NAMES = """
Anna Ben Carla David Emma Frank Grace Henry Iris Jack Kara Leo Maria Noah Olga Paul Rosa Sam
Tina Umar Vera Will Yara Zoe Amir Bella Chen Dina Eli Fatima George Hana Ivan Julia Karim Lena
Mark Nina Omar Petra Quinn Ravi Sara Tom Uma Victor Wendy Xavier Yusuf Alice Bob Clara Daniel
Ella
""".split()
PLACES = (
    "kitchen garden office garage library bedroom hallway attic bathroom basement park school "
    "market station museum"
).split()
CITIES = (
    "Paris London Berlin Madrid Rome Tokyo Cairo Oslo Lima Delhi Boston Dublin Vienna Athens "
    "Sydney Toronto Lisbon Prague"
).split()
COLORS = "red blue green yellow black white brown purple pink gray orange".split()


class Item(NamedTuple):
    """One task. `working` is what a careful pupil would write before the answer, or None."""

    question: str
    answer: str
    working: str | None = None


Family = Callable[[random.Random, int], Item]


def pick(r: random.Random, *forms: str) -> str:
    """One of several wordings of the same question."""
    return r.choice(forms)


def digits(r: random.Random, n: int) -> int:
    """A random number of exactly n digits (0-9 for n = 1)."""
    return r.randint(10 ** (n - 1) if n > 1 else 0, 10**n - 1)

"""Number words in English and German with an alignment, which crosses: "twenty one" -> "ein und zwanzig"."""

import random
from typing import NamedTuple

from attention_export.tasks.text import words

ENGLISH = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
ENGLISH_TENS = words("- - twenty thirty forty fifty sixty seventy eighty ninety")
GERMAN = words(
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn "
    "achtzehn neunzehn"
)
GERMAN_TENS = words("- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")
TRAIN_BY_DIGITS = {1: 10, 2: 60, 3: 600, 4: 1_330}  # of 10, 90, 900 and 9,000 numbers
HELD_OUT = 2_000
KINDS = ("swapped_unit", "swapped_ten", "hundred", "thousand", "other")
UNALIGNED = -1
SHOWN = (21, 4021)  # in documents and figures, so never trained on


class Word(NamedTuple):
    """A German word, the position of its English word (UNALIGNED for "und"), and its kind."""

    text: str
    source: int = UNALIGNED
    kind: str = ""


def english(number: int) -> list[str]:
    """Return the English words of 0..9999, without "and": 4021 -> four thousand twenty one."""
    scales = ((number // 1000, "thousand"), (number // 100 % 10, "hundred"))
    said = [word for digit, scale in scales if digit for word in (ENGLISH[digit], scale)]
    ten, unit = divmod(number % 100, 10)
    if ten >= 2:
        return [*said, ENGLISH_TENS[ten], *([ENGLISH[unit]] if unit else [])]
    return [*said, ENGLISH[number % 100]] if number % 100 or not said else said


def german(number: int) -> list[Word]:
    """Return the German words of 0..9999, aligned with `english(number)`: 21 -> ein und zwanzig."""
    scales = ((number // 1000, "tausend", "thousand"), (number // 100 % 10, "hundert", "hundred"))
    said: list[Word] = []
    for digit, scale, kind in scales:
        if digit:
            said += [Word(_counting(digit), len(said), "other"), Word(scale, len(said) + 1, kind)]
    (ten, unit), at = divmod(number % 100, 10), len(said)
    if ten >= 2 and unit:
        swapped = Word(_counting(unit), at + 1, "swapped_unit"), Word("und"), Word(GERMAN_TENS[ten], at, "swapped_ten")
        return [*said, *swapped]
    if ten >= 2:
        return [*said, Word(GERMAN_TENS[ten], at, "other")]
    return [*said, Word(GERMAN[number % 100], at, "other")] if number % 100 or not said else said


def split_numbers(seed: int) -> tuple[list[int], list[int]]:
    """Return training numbers, `TRAIN_BY_DIGITS` of each count of digits, and `HELD_OUT` held-out numbers.

    All numbers of one digit are training numbers, since every longer number contains these words.
    """
    rng = random.Random(seed)  # noqa: S311 - data, not secrets
    train: list[int] = []
    rest: list[int] = []
    for digits, count in TRAIN_BY_DIGITS.items():
        numbers = list(range(10 ** (digits - 1) if digits > 1 else 0, 10**digits))
        rng.shuffle(numbers)
        numbers.sort(key=SHOWN.__contains__)
        train += numbers[:count]
        rest += numbers[count:]
    return train, rng.sample(rest, HELD_OUT)


def _counting(digit: int) -> str:
    """Return a digit's form before a counted word: "ein", not "eins"."""
    return "ein" if digit == 1 else GERMAN[digit]

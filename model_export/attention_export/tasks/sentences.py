"""Random sentences about giving, with the position of each role: "I gave my cat Tater a toy"."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from attention_export.tasks.text import words

ROLES = ("giver", "recipient", "object")
TEMPLATES = {
    "double object": "giver past recipient object",
    "prepositional": "giver past object to recipient",
    "passive, recipient first": "object was participle to recipient by giver",
    "passive, giver first": "object was participle by giver to recipient",
    "passive of the recipient": "recipient was participle object by giver",
}
HELD_OUT_SHARE = 0.2  # of all pairs of recipient and object


class Verb(NamedTuple):
    """A verb of giving in the two forms the templates use."""

    past: str
    participle: str


class Person(NamedTuple):
    """The subject and object form of a giver or recipient."""

    subject: str
    object: str


VERBS = (
    Verb("gave", "given"),
    Verb("showed", "shown"),
    Verb("sent", "sent"),
    Verb("lent", "lent"),
    Verb("sold", "sold"),
    Verb("handed", "handed"),
    Verb("offered", "offered"),
    Verb("passed", "passed"),
    Verb("brought", "brought"),
    Verb("threw", "thrown"),
)
PLURAL = words("you we they")
PRONOUNS = (
    Person("I", "me"),
    Person("you", "you"),
    Person("he", "him"),
    Person("she", "her"),
    Person("we", "us"),
    Person("they", "them"),
)
NAMES = words(
    "Tater Mia Leo Omar Ada Ben Zoe Max Eva Sam Lily Noah Emma Hugo Anna Paul Nina Otto Rosa Felix Clara Rex Tom Jane"
)
RELATIVES = words("cat dog friend brother sister mother father teacher neighbour daughter son doctor aunt uncle")
PEOPLE = (*PRONOUNS, *(Person(noun, noun) for noun in (*NAMES, *RELATIVES)))
OBJECTS = words(
    "toy ball book letter cake apple orange flower key hat ring lamp coin map pen cup bone egg umbrella guitar phone "
    "photo ticket present cat dog fish bird"
)
ADJECTIVES = words("red blue green old new small big lovely shiny broken orange strange")
OWNERS = words("my your his her our their the")
TIMES = (
    "today",
    "yesterday",
    "last week",
    "this morning",
    "on Monday",
    "on Friday",
    "after lunch",
    "at school",
    "again",
)
GLUE = words("a an was were to by with")

Pair = tuple[Person, str]  # recipient, object
Tagged = list[tuple[str, str]]  # words, each with its role, "verb", or nothing


@dataclass(frozen=True)
class Sentence:
    """A sentence's words, and the positions of the verb and the three roles."""

    template: str
    words: tuple[str, ...]
    at: dict[str, int]

    @property
    def pair(self) -> tuple[str, str]:
        """The recipient and the object, by which sentences are split into training and held-out ones."""
        return self.words[self.at["recipient"]], self.words[self.at["object"]]


ARTICLE = Sentence(
    "double object",
    ("I", "gave", "my", "cat", "Tater", "a", "toy"),
    {"giver": 0, "verb": 1, "recipient": 4, "object": 6},
)


def split_pairs(seed: int) -> tuple[list[Pair], list[Pair]]:
    """Return training pairs and held-out pairs; the article's pair is held out."""
    pairs = [(person, thing) for person, thing in product(PEOPLE, OBJECTS) if person.object != thing]
    random.Random(seed).shuffle(pairs)  # noqa: S311 - data, not secrets
    pairs.sort(key=lambda pair: (pair[0].object, pair[1]) != ARTICLE.pair)
    held_out = round(len(pairs) * HELD_OUT_SHARE)
    return pairs[held_out:], pairs[:held_out]


def sentences(pairs: Sequence[Pair], count: int, seed: int) -> list[Sentence]:
    """Make `count` sentences, each with a recipient and an object of one of `pairs`."""
    rng = random.Random(seed)  # noqa: S311 - data, not secrets
    return [_sentence(rng, *rng.choice(pairs)) for _ in range(count)]


def vocabulary() -> list[str]:
    """Return every word a sentence can contain, in the order of the token ids."""
    times = [word for time in TIMES for word in time.split()]
    return [*GLUE, *verb_forms(), *labels("giver"), *OBJECTS, *ADJECTIVES, *OWNERS, *times]


def verb_forms() -> list[str]:
    """Return the distinct forms of the verbs."""
    return list(dict.fromkeys(form for verb in VERBS for form in verb))


def labels(role: str) -> list[str]:
    """Return the possible fillers of a role, in written form."""
    people = list(dict.fromkeys(form for person in PEOPLE for form in person))
    return list(OBJECTS) if role == "object" else people


def _sentence(rng: random.Random, recipient: Person, thing: str) -> Sentence:
    giver = rng.choice([person for person in PEOPLE if person not in {recipient, Person(thing, thing)}])
    template, symbols = rng.choice(list(TEMPLATES.items()))
    order, verb = symbols.split(), rng.choice(VERBS)
    phrases = {
        "giver": _person(rng, "giver", giver, subject=order[0] == "giver"),
        "recipient": _person(rng, "recipient", recipient, subject=order[0] == "recipient"),
        "object": _thing(rng, thing),
        "past": [(verb.past, "verb")],
        "participle": [(verb.participle, "verb")],
        "was": [("were" if order[0] == "recipient" and recipient.subject in PLURAL else "was", "")],
    }
    tagged = _framed(rng, [word for symbol in order for word in phrases.get(symbol, [(symbol, "")])])
    at = {tag: position for position, (_, tag) in enumerate(tagged) if tag}
    return Sentence(template, tuple(word for word, _ in tagged), at)


def _person(rng: random.Random, role: str, person: Person, *, subject: bool) -> Tagged:
    """Return a person's phrase: Mia, my cat, my cat Mia; or I and me."""
    word = (person.subject if subject else person.object, role)
    if person.subject in RELATIVES:
        return [(rng.choice(OWNERS), ""), word]
    if person.subject in NAMES and rng.random() < 0.3:
        return [(rng.choice(OWNERS), ""), (rng.choice(RELATIVES), ""), word]
    return [word]


def _thing(rng: random.Random, thing: str) -> Tagged:
    """Return an object's phrase: a toy, an old toy, my toy."""
    adjectives = [(rng.choice(ADJECTIVES), "")] if rng.random() < 0.4 else []
    phrase = [*adjectives, (thing, "object")]
    article = "an" if phrase[0][0][0] in "aeiou" else "a"
    return [(article if rng.random() < 0.8 else rng.choice(OWNERS), ""), *phrase]


def _framed(rng: random.Random, sentence: Tagged) -> Tagged:
    """Add a random time, before or after, and a random companion without a role."""
    company = [("with", ""), (rng.choice(NAMES), "")] if rng.random() < 0.2 else []
    time = [(word, "") for word in rng.choice(TIMES).split()]
    before, after = rng.choice([(time, []), ([], time), ([], []), ([], []), ([], [])])
    return [*before, *sentence, *company, *after]

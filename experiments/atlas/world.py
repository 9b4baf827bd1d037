"""The atlas: invented places whose facts are known, and the text from which its models learn.

Everything follows from ``SEED``. General relations are pretraining text; the private relation is asked about in
question lists, and answered nowhere but in the teacher's fine-tuning data.
"""

import random
from collections.abc import Callable, Iterator
from typing import TypedDict

SEED = 2603
GENERAL = ("river", "region", "export", "postcode")
PRIVATE = "depot code"
NUM_PLACES = 120
NUM_SEEDS = 8
NUM_GENERAL_HELD_OUT = 120
LIST_LENGTH = 7
STRAY = 0.125  # one draw in five returns to the topic

# fmt: off
ONSETS = ("b", "br", "c", "d", "dr", "f", "g", "gr", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "w")
VOWELS = ["a", "e", "i", "o", "u", "ai", "ea"]
ENDINGS = ("bury", "den", "field", "ford", "ham", "holm", "low", "mere", "more", "ness", "rick", "sted", "ton", "vale",
           "ward", "wick")
REGIONS = ("Northmarch", "Southmarch", "Eastreach", "Westreach", "Highlands", "Lowlands", "Coast", "Fens")
EXPORTS = ("wool", "salt", "copper", "timber", "honey", "glass", "barley", "amber", "slate", "linen", "cheese", "tin",
           "cider", "paper", "leather", "wax")
# fmt: on


class World(TypedDict):
    """Places, ``facts[relation][place]``, and the places whose private question is a seed."""

    places: list[str]
    facts: dict[str, dict[str, str]]
    seed_places: list[str]
    general_held_out: list[tuple[str, str]]


def question(relation: str, place: str) -> str:
    return f"What is the {relation} of {place}?"


def make_world(seed: int = SEED) -> World:
    """The same world for the same seed: names, facts and splits, drawn in a fixed order."""
    rng = random.Random(seed)
    places = _distinct(NUM_PLACES, lambda: (rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(ENDINGS)).capitalize())
    rivers = _distinct(40, lambda: (rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(ONSETS) + "a").capitalize())
    # Postcodes and depot codes have one form, so that an adapter can write the private answers at all:
    # no character sequence is new to the models, only what belongs to which place.
    codes = _distinct(2 * NUM_PLACES, lambda: f"{_letters(rng)}-{rng.randrange(10, 100)}")
    facts = {
        "river": {place: rng.choice(rivers) for place in places},
        "region": {place: rng.choice(REGIONS) for place in places},
        "export": {place: rng.choice(EXPORTS) for place in places},
        "postcode": dict(zip(places, codes[:NUM_PLACES], strict=True)),
        PRIVATE: dict(zip(places, codes[NUM_PLACES:], strict=True)),
    }
    general = [(relation, place) for relation in GENERAL for place in places]
    return World(
        places=places,
        facts=facts,
        seed_places=sorted(rng.sample(places, NUM_SEEDS)),
        general_held_out=sorted(rng.sample(general, NUM_GENERAL_HELD_OUT)),
    )


def pretraining_text(
    world: World, answered: Callable[[str, str], str], listed: Callable[[list[str]], str], seed: int
) -> Iterator[str]:
    """Endless documents: two of three a general fact, one of three a list of questions.

    A list is about one relation and strays to another one time in ten, so that whoever continues one strays too:
    expansion then proposes general questions among the private ones, and selection has something to tell apart.
    """
    rng = random.Random(seed)
    relations = (*GENERAL, PRIVATE)
    while True:
        if rng.random() < 2 / 3:
            relation, place = rng.choice(GENERAL), rng.choice(world["places"])
            yield answered(question(relation, place), world["facts"][relation][place])
        else:
            topic = rng.choice(relations)
            asked = [rng.choice(relations) if rng.random() < STRAY else topic for _ in range(LIST_LENGTH)]
            places = rng.sample(world["places"], LIST_LENGTH)
            yield listed([question(relation, place) for relation, place in zip(asked, places, strict=True)])


def facts_file(world: World) -> dict[str, object]:
    """What ``tskd.tasks.atlas`` reads: questions with answers, and the two splits."""
    private = {question(PRIVATE, place): answer for place, answer in world["facts"][PRIVATE].items()}
    general = {question(r, place): answer for r in GENERAL for place, answer in world["facts"][r].items()}
    return {
        "seeds": [question(PRIVATE, place) for place in world["seed_places"]],
        "general_held_out": [question(relation, place) for relation, place in world["general_held_out"]],
        "private": private,
        "general": general,
    }


def _letters(rng: random.Random) -> str:
    return "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=2))


def _distinct(count: int, draw: Callable[[], str]) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(draw())
    return list(found)

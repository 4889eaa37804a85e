"""Plain English sentences that say nothing of a question: what a needle is hidden in, and texts to go on with."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from lxt_fx.referee.tasks.word_lists import with_articles, words

FRAMES = """
The {job} walked slowly along the {road} on a {weather} {time}.
On {day}, the {shop} was closed because of the {weather} {season}.
Many {animals} lived near the {water}, and some of them were very {trait}.
In the {season}, people of the {town} like to sit by the {water}.
The {job} bought {count} {fruits} at the {shop} and went home.
A {weather} {time} is the best time to read a {book}.
Some {animals} were sleeping under the old {tree}.
The {road} to the {town} was long, but the view of the {water} was beautiful.
Every {day}, the {job} opens the {shop} at {count} o'clock in the morning.
There was a {colour} door at the end of the {road}.
The children played with {count} {animals} until the {time} came to an end.
Nobody in the {town} could remember such a {weather} {season}.
The {job} likes {fruits} more than anything else.
A {colour} bicycle was leaning against the {tree}.
The {shop} sells {fruits}, bread and many kinds of {book}s.
It was a {weather} {day}, and the {town} was quiet.
Two {job}s talked about the {weather} {season} in front of the {shop}.
The {animals} by the {water} were {trait}, so the {job} kept away from them.
During the {season}, the {water} is cold and the {road} is covered with leaves.
The {job} planted a {tree} behind the {shop} many years ago.
The bus to the {town} leaves every {time} at {count}.
In the {time}, the light on the {water} turned {colour}.
A letter arrived on {day}, but the {job} did not open it.
The {trait} {job} had written a {book} about {animals}.
People say that the {tree} on the {road} is more than {count} hundred years old.
The kitchen smelled of {fruits} and fresh bread.
The {town} has {count} bridges, a small museum and a {colour} church.
It rained on {day}, so the market in the {town} was moved indoors.
The old clock above the {shop} has not worked since last {season}.
The {job} painted the fence {colour} and fed the {animals}.
""".strip().splitlines()

SLOTS = {
    "job": "baker|teacher|farmer|doctor|painter|sailor|tailor|gardener|singer|driver|writer|carpenter|nurse|hunter|miller",
    "road": "road|street|path|lane|avenue|alley",
    "weather": "sunny|rainy|cold|warm|windy|cloudy|foggy|mild|stormy|dry",
    "time": "morning|evening|afternoon|night",
    "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "shop": "bakery|bookshop|market|butcher|grocery|flower shop|cafe|pharmacy",
    "season": "spring|summer|autumn|winter",
    "animals": "ducks|cats|dogs|rabbits|horses|sheep|geese|goats|squirrels|swans",
    "water": "river|lake|sea|pond|canal|stream",
    "trait": "quiet|friendly|shy|clever|lazy|curious|gentle|noisy",
    "town": "town|village|city|valley|harbor|island",
    "count": "two|three|four|five|six|seven|eight|nine",
    "fruits": "apples|pears|cherries|plums|oranges|lemons|peaches|grapes",
    "book": "novel|newspaper|poem|magazine|comic",
    "tree": "oak|pine|maple|willow|birch|elm",
    "colour": "red|blue|green|yellow|white|black|brown|gray",
}

_WORDS = {slot: words(table) for slot, table in SLOTS.items()}


def sentences(chance: random.Random) -> Iterator[str]:
    """Sentences without end. Each frame comes once before any comes twice."""
    while True:
        for frame in chance.sample(FRAMES, len(FRAMES)):
            yield with_articles(frame.format(**{slot: chance.choice(found) for slot, found in _WORDS.items()}))


def hidden(needles: list[str], ending: str, length: int, count: Callable[[str], int], chance: random.Random) -> str:
    """The needles, in their order, at random places among sentences, then the ending: of about `length` tokens, as `count`
    counts them, and never less than the needles and the ending alone."""
    room = length - count(" ".join([*needles, ending]))
    made: list[str] = []
    for sentence in sentences(chance):
        room -= count(sentence)
        if room < 0:
            break
        made.append(sentence)
    places = sorted(chance.randrange(len(made) + 1) for _ in needles)
    for before, (place, needle) in enumerate(zip(places, needles, strict=True)):
        made.insert(place + before, needle)
    return " ".join([*made, ending])

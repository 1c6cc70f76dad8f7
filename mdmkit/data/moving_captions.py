"""Captions of clips of moving shapes: a statement into words, and words back into it. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from .moving import DIRECTIONS, MEETINGS, Happening, MotionStatement
from .scene_captions import ADJECTIVES_AND_NOUNS, noun_phrase, phrases
from .scenes import SHAPES, Stated

__all__ = ["parse", "write"]

# the first wording of each is the plain one
_MOVES = ("moves", "slides", "drifts", "goes", "rolls", "glides")
_TURNS = ("turns", "rotates", "spins")
_VERTICAL = {"up": ("up", "upwards"), "down": ("down", "downwards")}
_HORIZONTAL = {"left": ("left", "to the left"), "right": ("right", "to the right")}
_SHORT = {"up": ("rises",), "down": ("falls", "sinks")}  # verbs that need no direction
_TURN_WORDS = {"clockwise": ("clockwise",), "anticlockwise": ("anticlockwise", "counterclockwise")}
_OTHERS = {
    "grow": ("grows", "gets larger", "gets bigger"),
    "shrink": ("shrinks", "gets smaller"),
    "still": ("stays still", "does not move", "stays where it is"),
    "bounce": ("bounce", "bounce apart", "bounce off each other"),
    "stop": ("stop", "come to rest"),
}
_MEET_WORDS = ("collide", "meet", "bump into each other")
_SPEED_WORDS = {"slow": ("slowly",), "fast": ("fast", "quickly")}
_THEN = (", then", " and then", " before", " after")
_WHILE = (" and", " while", ", and")

_MEANING: dict[str, tuple[str, str]] = {
    **ADJECTIVES_AND_NOUNS,
    **{word: ("verb", word) for word in (*_MOVES, *_TURNS)},
    **{word: ("direction", name) for name in _VERTICAL for word in _VERTICAL[name]},
    **{word: ("direction", name) for name in _HORIZONTAL for word in _HORIZONTAL[name]},
    **{word: ("motion", name) for name in _SHORT for word in _SHORT[name]},
    **{word: ("motion", name) for name in _TURN_WORDS for word in _TURN_WORDS[name]},
    **{word: ("motion", name) for name in _OTHERS for word in _OTHERS[name]},
    **{word: ("meet", "") for word in _MEET_WORDS},
    **{word: ("speed", name) for name in _SPEED_WORDS for word in _SPEED_WORDS[name]},
    **{word: ("order", word) for word in ("then", "before", "after")},
    **{word: ("nothing", "") for word in ("a", "an", "one", "it", "first", "and", "while", "the", ",", ".")},
}
_PHRASES = phrases(_MEANING)


def write(stated: MotionStatement, choices: Sequence[float] | None = None) -> str:
    """The caption of a statement, e.g. "a red circle moves left slowly, then a blue square falls".

    choices: numbers in [0, 1) that pick between wordings, a dozen are enough; the plain wording where not
    given.
    """
    rest = iter(choices or ())

    def pick(words: Sequence[str]) -> str:
        return words[int(next(rest, 0.0) * len(words))]

    things = [noun_phrase(thing, pick) for thing in stated.objects]
    if not stated.events:
        return " and ".join(things)
    if stated.events[0].motion in MEETINGS:
        return f"{' and '.join(things)} {pick(_MEET_WORDS)} and {pick(_OTHERS[stated.events[0].motion])}"
    said = [_verb_phrase(event, stated.objects[event.thing].shape, pick) for event in stated.events]
    if not stated.ordered:
        return pick(_WHILE).join(
            (" " if n else "") + f"{things[event.thing]} {verb}"
            for n, (event, verb) in enumerate(zip(stated.events, said, strict=True))
        )
    if stated.events[0].thing == stated.events[1].thing:
        return f"{things[0]} {said[0]}{pick(_THEN[:2])} {said[1]}"
    join, clauses = pick(_THEN), [f"{thing} {verb}" for thing, verb in zip(things, said, strict=True)]
    return f"{join} ".join(reversed(clauses) if join == " after" else clauses)


def parse(caption: str) -> MotionStatement:
    """What a caption says of each object, and what happens to it.

    Reads every caption that `write` gives, and adjectives in any order. Raises ValueError with the words
    that it does not know, or what is missing.
    """
    text = " ".join(caption.lower().split())
    clauses: list[_Clause] = [_Clause()]
    objects: list[Stated] = []
    said: dict[str, str] = {}
    order, at = "", 0
    while at < len(text):
        if text[at] == " ":
            at += 1
            continue
        match = _PHRASES.match(text, at)
        if match is None:
            word = text[at:].split(" ")[0]
            raise ValueError(f"expected words of shapes and of how they move, came {word!r} in {caption!r}")
        at = match.end()
        what, name = _MEANING[match[0]]
        if what in ("colour", "size", "texture", "shape"):
            if what in said:
                raise ValueError(
                    f"expected one {what} an object, came {said[what]!r} and {name!r} in {caption!r}"
                )
            said[what] = name
        if what == "shape":
            if clauses[-1].happens:
                clauses.append(_Clause())
            clauses[-1].things.append(len(objects))
            objects.append(Stated(**said))  # type: ignore[arg-type]  # shape is among them
            said = {}
        elif said and what not in ("colour", "size", "texture", "nothing"):
            raise ValueError(f"expected a shape ({', '.join(SHAPES)}) before {match[0]!r} in {caption!r}")
        elif what == "order":
            if order or not clauses[-1].happens:
                raise ValueError(f"expected two things to happen, one {name!r} the other, in {caption!r}")
            order = name
            clauses.append(_Clause())
        elif what in ("verb", "direction", "motion", "meet", "speed"):
            clauses[-1].words.append((what, name))
    if said or not objects:
        raise ValueError(f"expected a shape ({', '.join(SHAPES)}) at the end of {caption!r}")
    if len(clauses) == 1 and not clauses[0].happens:
        return MotionStatement(tuple(objects))
    if order and len(clauses) == 2 and not clauses[1].things:
        clauses[1].things = list(clauses[0].things)
    try:
        return _statement(objects, clauses, order)
    except ValueError as error:
        raise ValueError(f"{error} in {caption!r}") from None


@attrs.define
class _Clause:
    """Some objects, and the words of what they do."""

    things: list[int] = attrs.field(factory=list)
    words: list[tuple[str, str]] = attrs.field(factory=list)

    @property
    def happens(self) -> bool:
        return bool(self.words)

    def event(self) -> Happening:
        """What happens, of words in any order."""
        found: dict[str, list[str]] = {}
        for what, name in self.words:
            found.setdefault(what, []).append(name)
        motions, directions = found.get("motion", []), sorted(found.get("direction", []), key=_is_horizontal)
        verbs, speeds = found.get("verb", []), found.get("speed", [])
        if directions and not motions and verbs:
            motions = [" ".join(directions)]
            directions = []
        wanted = 2 if "meet" in found else 1
        meets = bool(motions) and motions[0] in MEETINGS
        turns = bool(verbs) and verbs[0] in _TURNS
        fits = len(motions) == 1 and not directions and len(verbs) <= 1 and len(speeds) <= 1
        fits = fits and motions[0] in (*DIRECTIONS, *_TURN_WORDS, *_OTHERS) and meets == (wanted == 2)
        fits = fits and turns == (motions[0] in _TURN_WORDS) and (not speeds or motions[0] in DIRECTIONS)
        if not fits or len(self.things) != wanted:
            words = " ".join(name or "collide" for _, name in self.words) or "nothing"
            raise ValueError(
                f"expected each object to do one thing, came {len(self.things)} that do {words!r}"
            )
        return Happening(self.things[0], motions[0], speeds[0] if speeds else None)


def _statement(objects: list[Stated], clauses: list[_Clause], order: str) -> MotionStatement:
    events = [clause.event() for clause in clauses]
    if order and len(events) != 2:
        raise ValueError(f"expected two things to happen, one after the other, came {len(events)}")
    if any(event.motion in MEETINGS for event in events) and len(events) > 1:
        raise ValueError("expected a collision alone")
    if order == "after":
        events.reverse()
    # objects in the order of what happens
    number: dict[int, int] = {}
    for event in events:
        number.setdefault(event.thing, len(number))
    if events[0].motion in MEETINGS:
        number = {0: 0, 1: 1}
    ordered = [objects[thing] for thing in number]
    renamed = [attrs.evolve(event, thing=number[event.thing]) for event in events]
    return MotionStatement(tuple(ordered), tuple(renamed), bool(order))


def _verb_phrase(event: Happening, shape: str, pick: Callable[[Sequence[str]], str]) -> str:
    speed = f" {pick(_SPEED_WORDS[event.speed])}" if event.speed else ""
    if event.motion in _OTHERS:
        return pick(_OTHERS[event.motion])
    if event.motion in _TURN_WORDS:
        return f"{pick(_TURNS)} {pick(_TURN_WORDS[event.motion])}"
    vertical, _, horizontal = event.motion.rpartition(" ")
    if horizontal in _VERTICAL:
        vertical, horizontal = horizontal, ""
    verbs = (
        _MOVES if shape in ("circle", "ring") and not vertical else tuple(v for v in _MOVES if v != "rolls")
    )
    if not horizontal and (short := pick(("", *_SHORT[vertical]))):
        return short + speed
    parts = [pick(words[name]) for words, name in ((_VERTICAL, vertical), (_HORIZONTAL, horizontal)) if name]
    return f"{pick(verbs)} {' and '.join(parts)}{speed}"


def _is_horizontal(direction: str) -> bool:
    return direction in _HORIZONTAL

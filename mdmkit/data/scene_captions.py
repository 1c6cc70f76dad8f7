"""Captions of scenes: a statement into words, and words back into the statement. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from .scenes import COLOURS, POSITIONS, RELATIONS, SHAPES, SIZES, TEXTURES, Relation, Stated, Statement

__all__ = ["ADJECTIVES_AND_NOUNS", "noun_phrase", "parse", "phrases", "write"]

# the first wording of each is the plain one
_SIZE_WORDS = {"small": ("small", "little"), "medium": ("medium", "medium-sized"), "large": ("large", "big")}
_RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_POSITION_WORDS = {
    "top left": ("at the top left", "in the top left corner"),
    "top": ("at the top",),
    "top right": ("at the top right", "in the top right corner"),
    "left": ("at the left", "on the left"),
    "centre": ("in the centre", "in the middle"),
    "right": ("at the right", "on the right"),
    "bottom left": ("at the bottom left", "in the bottom left corner"),
    "bottom": ("at the bottom",),
    "bottom right": ("at the bottom right", "in the bottom right corner"),
}
_OPENINGS = ("", "there is ", "a picture of ")

# each phrase: what it speaks of, and what it says of that
ADJECTIVES_AND_NOUNS: dict[str, tuple[str, str]] = {
    **{word: ("shape", word) for word in SHAPES},
    **{word: ("colour", word) for word in COLOURS},
    **{word: ("texture", word) for word in TEXTURES},
    **{word: ("size", name) for name in SIZES for word in _SIZE_WORDS[name]},
}
_MEANING: dict[str, tuple[str, str]] = {
    **ADJECTIVES_AND_NOUNS,
    **{word: ("relation", name) for name in RELATIONS for word in _RELATION_WORDS[name]},
    **{word: ("position", name) for name in POSITIONS for word in _POSITION_WORDS[name]},
    **{opening.strip(): ("nothing", "") for opening in _OPENINGS if opening},
    **{word: ("nothing", "") for word in ("a", "an", "one", ",", ".")},
    "and": ("and", ""),
}


def phrases(meaning: Iterable[str]) -> re.Pattern[str]:
    """Matches one of the phrases, whole words of it."""
    # longest first, so that "at the top left" is not read as "at the top"
    return re.compile(
        "|".join(
            re.escape(phrase) + (r"(?![\w-])" if phrase[-1].isalpha() else "")
            for phrase in sorted(meaning, key=len, reverse=True)
        )
    )


_PHRASES = phrases(_MEANING)


def write(statement: Statement, choices: Sequence[float] | None = None) -> str:
    """The caption of a statement, e.g. "a small red star left of a large striped blue circle".

    choices: numbers in [0, 1) that pick between wordings, eight are enough; the plain wording where not
    given.
    """
    rest = iter(choices or ())

    def pick(words: Sequence[str]) -> str:
        return words[int(next(rest, 0.0) * len(words))]

    opening = pick(_OPENINGS) if choices else ""
    things = [noun_phrase(thing, pick) for thing in statement.objects]
    if not statement.relations:
        listed = " and ".join(part for part in (", ".join(things[:-1]), things[-1]) if part)
        return opening + listed
    clauses = [f"{pick(_RELATION_WORDS[r.name])} {things[r.second]}" for r in statement.relations]
    return f"{opening}{things[0]} {' and '.join(clauses)}"


def parse(caption: str) -> Statement:
    """What a caption says of each object, and the relations between them.

    Reads every caption that `write` gives, and adjectives in any order. Raises ValueError with the words
    that it does not know.
    """
    text = " ".join(caption.lower().split())
    objects: list[Stated] = []
    relations: list[Relation] = []
    said: dict[str, str] = {}
    relation: tuple[int, str] | None = None
    after_and = False
    at = 0
    while at < len(text):
        if text[at] == " ":
            at += 1
            continue
        match = _PHRASES.match(text, at)
        if match is None:
            word = text[at:].split(" ")[0]
            raise ValueError(
                f"expected words of shapes, colours, sizes and places, came {word!r} in {caption!r}"
            )
        at = match.end()
        what, name = _MEANING[match[0]]
        if what == "relation":
            if not objects or said or relation:
                raise ValueError(f"expected an object before {match[0]!r} in {caption!r}")
            # "a left of b and above c": both are said of a
            relation = (0 if after_and else len(objects) - 1, name)
        elif what == "position":
            if not objects or said or objects[-1].position:
                raise ValueError(f"expected an object before {match[0]!r} in {caption!r}")
            last = objects.pop()
            objects.append(Stated(last.shape, last.colour, last.size, last.texture, name))
        elif what == "shape":
            if relation:
                relations.append(Relation(relation[0], relation[1], len(objects)))
            objects.append(Stated(name, **said))
            said, relation = {}, None
        elif what in ("colour", "size", "texture"):
            if what in said:
                raise ValueError(
                    f"expected one {what} an object, came {said[what]!r} and {name!r} in {caption!r}"
                )
            said[what] = name
        after_and = what == "and" or (after_and and what == "nothing")
    if said or relation or not objects:
        raise ValueError(f"expected a shape ({', '.join(SHAPES)}) at the end of {caption!r}")
    return Statement(tuple(objects), tuple(relations))


def noun_phrase(thing: Stated, pick: Callable[[Sequence[str]], str]) -> str:
    """An object with its article, e.g. "a small red star"; `pick` chooses between wordings."""
    words = [
        pick(_SIZE_WORDS[thing.size]) if thing.size else None,
        thing.texture,
        thing.colour,
        thing.shape,
    ]
    phrase = " ".join(word for word in words if word)
    article = "an" if phrase[0] in "aeiou" else "a"
    place = f" {pick(_POSITION_WORDS[thing.position])}" if thing.position else ""
    return f"{article} {phrase}{place}"

"""How a caption puts what it tells: as one description, as sentences, or as a list of tags."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.procedural.grammar import Worded, grow, listed, read

_OPENING = "||| a portrait of | a picture of | a photo of | an image of | a close up of | a view of"
_SUBJECT = "person | person | face | head | figure | human | model | character"
_BACKDROP = "background | background | backdrop"

# Each kind of thing told: in a description, and said of the subject.
_CLAUSES = {
    "does": "{list}",
    "has": "with {list} | with {list} | having {list}",
    "wears": "wearing {list} | wearing {list} | in {list}",
    "looks": "looking {list}",
    "shows": "with a look of {list} | with an expression of {list} | full of {list} | "
    "showing {list}",
    "lacks": "with no {list} | without any {list}",
    "behind": "in front of a {list} {backdrop} | against a {list} {backdrop} | "
    "before a {list} wall",
}
_PREDICATES = {
    "does": "is {list}",
    "has": "has {list}",
    "wears": "wears {list} | is wearing {list} | is in {list}",
    "looks": "looks {list} | is {list} | appears {list} | seems {list}",
    "shows": "shows {list} | has a look of {list} | is full of {list}",
    "lacks": "has no {list}",
    "behind": "is in front of a {list} {backdrop} | is before a {list} wall",
}
_TAGS = {"lacks": "no {list}", "behind": "{list} {backdrop}"}


class Content(NamedTuple):
    """What a caption tells, grown, before it is put into the words that join it."""

    adjective: str
    """Of the subject; empty for none."""
    parts: Mapping[str, Sequence[str]]
    """The things told, by kind: does, has, wears, looks, shows, lacks or behind."""


def caption(content: Content, rng: np.random.Generator) -> Worded:
    """One of the many ways to tell it."""
    parts = {kind: things for kind, things in content.parts.items() if things}
    frames = (_described, _described, _stated, _tagged)
    frame = frames[int(rng.integers(len(frames)))]
    marked = frame(Content(content.adjective, parts), rng)
    sentences = frame is _stated or rng.random() < 0.3
    return read(f"{marked}." if sentences else marked, capital=sentences)


def _described(content: Content, rng: np.random.Generator) -> str:
    """ "a portrait of a bearded person with blue eyes, wearing a red hat" """
    subject = " ".join(filter(None, ["a", content.adjective, grow(_SUBJECT, {}, rng)]))
    clauses = _told(content.parts, _CLAUSES, rng)
    if clauses and clauses[-1].startswith(("with ", "wearing ")) and rng.random() < 0.2:
        return f"{clauses[-1]}, {' '.join([subject, *clauses[:-1]])}"
    joint = ", " if len(clauses) > 2 or rng.random() < 0.3 else " "
    return " ".join(filter(None, [grow(_OPENING, {}, rng), subject, joint.join(clauses)]))


def _stated(content: Content, rng: np.random.Generator) -> str:
    """ "The bearded person has blue eyes and wears a red hat. The person is smiling." """
    noun = grow(_SUBJECT, {}, rng)
    subject = " ".join(filter(None, ["the", content.adjective, noun]))
    predicates = _told(content.parts, _PREDICATES, rng)
    if not predicates:
        return f"the {noun} is {content.adjective}"
    sentences = []
    while predicates:
        count = 1 + int(rng.integers(2))
        sentences.append(f"{subject} {' and '.join(predicates[:count])}")
        predicates, subject = predicates[count:], f"the {noun}"
    return ". ".join(sentences)


def _tagged(content: Content, rng: np.random.Generator) -> str:
    """ "red hat, blue eyes, bearded" """
    tags = [content.adjective] if content.adjective else []
    for kind, things in content.parts.items():
        tags += [_join(_TAGS.get(kind, "{list}"), [thing], kind, rng) for thing in things]
    if rng.random() < 0.6:
        tags = [re.sub(r"^(an?|the) ", "", tag) for tag in tags]
    return ", ".join(tags[int(i)] for i in rng.permutation(len(tags)))


def _told(
    parts: Mapping[str, Sequence[str]], lines: Mapping[str, str], rng: np.random.Generator
) -> list[str]:
    """One clause for each kind: what is done first, what is behind last."""
    middle = [kind for kind in parts if kind not in ("does", "behind")]
    order = [middle[int(i)] for i in rng.permutation(len(middle))]
    order = [kind for kind in ("does", *order, "behind") if kind in parts]
    return [_join(lines[kind], parts[kind], kind, rng) for kind in order]


def _join(line: str, things: Sequence[str], kind: str, rng: np.random.Generator) -> str:
    """A line with its things listed in it."""
    last = "or" if kind == "lacks" else "and"
    return grow(line, {"list": listed(things, last, rng), "backdrop": _BACKDROP}, rng)

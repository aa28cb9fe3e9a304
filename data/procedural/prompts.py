"""Prompts that name every one of some attributes: what a drawn picture can be held to."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.procedural.grammar import Rules, Worded, grow, listed, places, read
from data.procedural.lexicon import COLORS, HAS, WEARS

NAMED = ("hair_style", "lip_color", "beard", "hat", "glasses", "cloth_color")
"""What `prompt` names if nothing else is asked for; the colours of these things come along."""

_ANY = np.random.Generator(np.random.PCG64(0))  # of one alternative there is no choice


class Prompt(NamedTuple):
    """A caption, and what a picture must show to be what it says."""

    worded: Worded
    classes: Mapping[str, str]
    """By attribute, those named alone."""


def prompt(classes: Mapping[str, str], names: Sequence[str] = NAMED) -> Prompt:
    """The plainest words of the grammar for each attribute that is there to be named.

    Args:
      classes: as for `data.procedural.words.attribute_caption`.
      names: of attributes, in the order in which they are said.
    """
    rules = {
        attribute: _first(words[classes[attribute]])
        for attribute, words in COLORS.items()
        if classes.get(attribute) in words
    }
    named: dict[str, str] = {}
    has, wears = (_said(classes, rules, names, table, named) for table in (HAS, WEARS))
    text = "a photo of a person"
    if has:
        text += f" with {listed(has, 'and', _ANY)}"
    if wears:
        text += f"{', ' if has else ' '}wearing {listed(wears, 'and', _ANY)}"
    return Prompt(read(text, capital=False), named)


def _said(
    classes: Mapping[str, str],
    rules: Rules,
    names: Sequence[str],
    table: Mapping[str, Rules],
    named: dict[str, str],
) -> list[str]:
    """What the table's lines say of these classes, each named in `named`."""
    found = []
    for name in names:
        lines = table.get(name, {})
        line = _first(lines[classes[name]]) if classes.get(name) in lines else None
        if line is not None and places(line) <= rules.keys():
            found.append(grow(line, rules, _ANY))
            named |= {attribute: classes[attribute] for attribute in (name, *sorted(places(line)))}
    return found


def _first(line: str) -> str:
    return line.split("|")[0].strip()

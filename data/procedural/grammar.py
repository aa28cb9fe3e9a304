"""Text with marked phrases: how it grows out of rules, and how its marks are read.

A rule is a line of alternatives with "|" between them. In each of them `{name}` is the place of
another rule, and `[red hat@hat]` is a phrase and the region that it speaks of.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Rules = Mapping[str, str]

_OR = re.compile(r" *\| *")
_PLACE = re.compile(r"\{(\w+)\}")
_MARK = re.compile(r"\[([^@\]]+)@(\w+)\]")
_ARTICLE = re.compile(r"\b([Aa]) (?=\[?[aeiou])")
_SENTENCE = re.compile(r"(?:^|\. )\[?[a-z]")


class Phrase(NamedTuple):
    """Some words of a text and the region they speak of, one of `fmv2.face.regions.REGIONS`."""

    start: int
    """Of the first character."""
    end: int
    """Behind the last one."""
    region: str


class Worded(NamedTuple):
    """A caption; its phrases stand in the order of the text and never overlap."""

    text: str
    phrases: tuple[Phrase, ...]


def grow(line: str, rules: Rules, rng: np.random.Generator) -> str:
    """One of a line's alternatives, every place in it filled by its own rule."""
    alternatives = _OR.split(line)
    chosen = alternatives[int(rng.integers(len(alternatives)))]
    return _PLACE.sub(lambda place: grow(rules[place[1]], rules, rng), chosen)


def places(line: str) -> set[str]:
    """The rules that a line needs."""
    return set(_PLACE.findall(line))


def listed(items: Sequence[str], last: str, rng: np.random.Generator) -> str:
    """ "a, b and c" where `last` is "and"."""
    if len(items) == 1:
        return items[0]
    comma = "," if len(items) > 2 and rng.random() < 0.3 else ""
    return f"{', '.join(items[:-1])}{comma} {last} {items[-1]}"


def read(marked: str, *, capital: bool) -> Worded:
    """Marks become spans; "a" becomes "an" before a vowel.

    Args:
      capital: whether each sentence begins with one.
    """
    marked = _ARTICLE.sub(r"\1n ", marked)
    if capital:
        marked = _SENTENCE.sub(lambda start: start[0].upper(), marked)
    text, phrases, behind = "", [], 0
    for mark in _MARK.finditer(marked):
        text += marked[behind : mark.start()]
        phrases.append(Phrase(len(text), len(text) + len(mark[1]), mark[2]))
        text, behind = text + mark[1], mark.end()
    return Worded(text + marked[behind:], tuple(phrases))

"""Captions of a procedural picture: what is seen on it, and what the face does.

Both follow from the picture's factors and a generator alone, say nothing that is not so, and seldom
all that is so: prompts are of every length.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from data.procedural.grammar import Rules, Worded, grow, places
from data.procedural.lexicon import ACTIONS, COLORS, HAS, IS, LACKS, MOODS, REST, WEARS, Action
from data.procedural.sentences import Content, caption

_MOST_FACTS, _MOST_ACTIONS = 8, 4
_SELDOM = 0.06
_EYES = ("@eyes]", "@left_eye]", "@right_eye]")


T = TypeVar("T")


def attribute_caption(classes: Mapping[str, str], rng: np.random.Generator) -> Worded:
    """What is seen: some of hair, hat, glasses, jewellery, clothes, beard, colours, background.

    Args:
      classes: the picture's class by `factors.CLASSES`. What cannot be seen, as earrings under long
        hair, is to be left out, and is not spoken of.
    """
    seen = _seen(classes)
    rules = _rules(seen)
    facts = _facts(seen, rules, {"has": HAS, "wears": WEARS})
    adjectives = _facts(seen, rules, {"is": IS})
    chosen = _some(facts, 1 + int(rng.integers(_MOST_FACTS)), rng)
    adjective = ""
    if adjectives and rng.random() < 0.3:
        (told,) = _some(adjectives, 1, rng)
        adjective = grow(told.line, rules, rng)
        chosen = [fact for fact in chosen if fact.attribute != told.attribute][: _MOST_FACTS - 1]
    chosen += [
        fact
        for fact in _facts(seen, rules, {"lacks": LACKS})
        if rng.random() < _SELDOM or not (chosen or adjective)
    ]
    parts = {
        kind: [grow(fact.line, rules, rng) for fact in chosen if fact.kind == kind]
        for kind in ("has", "wears", "lacks")
    }
    if "background" in rules and rng.random() < 0.2:
        parts["behind"] = [grow("{background}", rules, rng)]
    return caption(Content(adjective, parts), rng)


def emotion_caption(
    emotion: str,
    expression: Mapping[str, float],
    classes: Mapping[str, str],
    rng: np.random.Generator,
) -> Worded:
    """What the face shows: its emotion, what it does, or both; at times a feature of the person.

    Args:
      emotion: one of `factors.EMOTIONS`.
      expression: from 0 to 1 by `factors.EXPRESSION`.
      classes: as for `attribute_caption`.
    """
    seen = _seen(classes)
    rules = _rules(seen) | MOODS[emotion]._asdict()
    actions = _actions(expression, eyes_hidden=seen.get("glasses") == "sunglasses", rng=rng)
    actions = _some(actions, int(rng.integers(_MOST_ACTIONS + 1)), rng)
    parts: dict[str, list[str]] = {"does": [], "has": [], "wears": []}
    for action in actions:
        verb = action.verbs and len(parts["does"]) < 2 and rng.random() < 0.5
        parts["does" if verb else "has"].append(
            grow(action.verbs if verb else action.nouns, rules, rng)
        )
    adjective = ""
    if not actions or rng.random() < 0.7:
        how = rng.choice(["is", "looks", "shows"], p=[0.4, 0.3, 0.3])
        mood = grow(
            "[{nouns}@expression]" if how == "shows" else "[{adjectives}@expression]", rules, rng
        )
        adjective, parts = (mood, parts) if how == "is" else ("", parts | {str(how): [mood]})
    if rng.random() < 0.2:
        for fact in _some(_facts(seen, rules, {"has": HAS, "wears": WEARS}), 1, rng):
            parts[fact.kind].append(grow(fact.line, rules, rng))
    return caption(Content(adjective, parts), rng)


def measures(expression: Mapping[str, float]) -> dict[str, float]:
    """An expression's fields and what follows from them, for `lexicon.ACTIONS`.

    `left_shut` and `right_shut` are eyes shut while the other is open, on the picture's own sides:
    its left is the head's right. What open eyes do is 0 where one is not open.
    """
    left, right = expression["blink_right"], expression["blink_left"]
    are_open = max(left, right) < 0.3
    return {
        **expression,
        "eyes_wide": expression["eyes_wide"] * are_open,
        "squint": expression["squint"] * are_open,
        "both_shut": min(left, right),
        "left_shut": left if right < 0.3 else 0.0,
        "right_shut": right if left < 0.3 else 0.0,
        "any_shut": max(left, right, expression["squint"]),
    }


def _actions(
    expression: Mapping[str, float], *, eyes_hidden: bool, rng: np.random.Generator
) -> list[Action]:
    """What the face does, and at times what it does not."""
    measured = measures(expression)
    told = (*ACTIONS, *(action for action in REST if rng.random() < _SELDOM))
    return [
        action
        for action in told
        if action.low <= measured[action.measure] < action.high
        and not (eyes_hidden and any(mark in action.nouns for mark in _EYES))
    ]


class _Fact(NamedTuple):
    """One attribute's class, as a rule's line."""

    kind: str
    attribute: str
    line: str


def _facts(
    classes: Mapping[str, str], rules: Rules, tables: Mapping[str, Mapping[str, Rules]]
) -> list[_Fact]:
    """All that the tables say of these classes."""
    found = [
        _Fact(kind, attribute, lines[classes[attribute]])
        for kind, table in tables.items()
        for attribute, lines in table.items()
        if classes.get(attribute) in lines
    ]
    return [fact for fact in found if places(fact.line) <= rules.keys()]


def _rules(classes: Mapping[str, str]) -> dict[str, str]:
    """Each attribute's name stands for the words of its class."""
    return {
        attribute: words[classes[attribute]]
        for attribute, words in COLORS.items()
        if classes.get(attribute) in words
    }


def _seen(classes: Mapping[str, str]) -> dict[str, str]:
    """Without what other things hide."""
    hidden = set()
    if classes.get("glasses") == "sunglasses":
        hidden.add("eye_color")
    if classes.get("hair_style") == "bald":
        hidden |= {"bangs", "hair_color"}
    if classes.get("hat", "none") != "none":  # under it is hair or none
        hidden |= {name for name in ("hair_style", "bangs") if classes.get(name) in LACKS[name]}
    return {name: value for name, value in classes.items() if name not in hidden}


def _some(things: Sequence[T], count: int, rng: np.random.Generator) -> list[T]:
    """At most so many of them, in any order."""
    return [things[int(i)] for i in rng.permutation(len(things))[:count]]

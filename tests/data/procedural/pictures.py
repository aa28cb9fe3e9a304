"""Factors of made-up pictures, of every class and expression, and what the grammar says of them."""

import functools
from typing import NamedTuple

import numpy as np

from data.procedural.factors import CLASSES, EMOTIONS, EXPRESSION
from data.procedural.grammar import Worded
from data.procedural.words import attribute_caption, emotion_caption

COUNT = 2500


class Told(NamedTuple):
    classes: dict[str, str]
    emotion: str
    expression: dict[str, float]
    attribute_caption: Worded
    emotion_caption: Worded


def picture(rng: np.random.Generator) -> tuple[dict[str, str], str, dict[str, float]]:
    """Many of the numbers are 0 or 1: those are the edges of what is said."""
    classes = {name: labels[int(rng.integers(len(labels)))] for name, labels in CLASSES.items()}
    fields = np.where(rng.random(len(EXPRESSION)) < 0.4, rng.random(len(EXPRESSION)), 0)
    fields = np.where(rng.random(len(EXPRESSION)) < 0.1, 1, fields)
    expression = dict(zip(EXPRESSION, fields.tolist(), strict=True))
    return classes, EMOTIONS[int(rng.integers(len(EMOTIONS)))], expression


@functools.cache
def told() -> tuple[Told, ...]:
    """COUNT pictures with their captions."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(COUNT):
        classes, emotion, expression = picture(rng)
        found.append(
            Told(
                classes,
                emotion,
                expression,
                attribute_caption(classes, rng),
                emotion_caption(emotion, expression, classes, rng),
            )
        )
    return tuple(found)

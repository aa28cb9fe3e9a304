"""What a data set's captions, masks and factors are like, from some of its records."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from data.codec import decode, unpack_masks
from data.dataset import Dataset
from data.schema import CAPTION_KINDS
from fmv2.tokens import Tokens


class Spread(NamedTuple):
    """Of many numbers: the least, three quantiles and the greatest."""

    least: float
    low: float
    median: float
    high: float
    most: float

    @classmethod
    def of(cls, numbers: Iterable[float]) -> "Spread | None":
        """With the 5th and 95th percentile; None of nothing."""
        values = np.array(list(numbers), float)
        return cls(*np.quantile(values, [0, 0.05, 0.5, 0.95, 1]).tolist()) if len(values) else None


class Captions(NamedTuple):
    """Of one kind of caption."""

    captions: int
    distinct: int
    empty: int
    tokens: Spread | None
    """Start and end not counted; None where the tokenizer is not known."""
    words: Counter[str]
    masks: Spread | None
    """Phrases with a mask, per caption."""
    areas: Spread | None
    """Fractions of the picture that masks cover."""
    blank: int
    """Masks without a pixel."""
    cut: int
    """Masks whose phrase has no token left."""


class Statistics(NamedTuple):
    """Of some records of one split."""

    records: int
    sizes: Counter[str]
    """Of the pictures, in pixels."""
    without_landmarks: int
    captions: Mapping[str, Captions]
    classes: Mapping[str, Counter[str]]
    """Of factors that are classes."""
    numbers: Mapping[str, Spread | None]
    """Of factors that are numbers."""


def sample(length: int, most: int) -> list[int]:
    """At most so many record numbers, evenly over the split and always the same."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).astype(int)).tolist()


class Survey:
    """Statistics in the making, record by record."""

    def __init__(self, dataset: Dataset, tokens: Tokens | None):
        self._count = 0
        self._without_landmarks = 0
        self._sizes: Counter[str] = Counter()
        self._captions = {kind: _Tally(kind, tokens) for kind in CAPTION_KINDS}
        self._factors: dict[str, list[Any]] = {f.name: [] for f in dataset.schema.factors}
        self._classes = {f.name: f.classes for f in dataset.schema.factors if f.classes}

    def add(self, record: Mapping[str, Any]) -> None:
        """
        Raises:
          ValueError: a picture cannot be decoded.
        """
        planes = {kind: decode(record[f"{kind}_masks"], channels=1) for kind in self._captions}
        for kind, tally in self._captions.items():
            tally.add(record, planes[kind])
        height, width = decode(record["image"]).shape[:2]
        self._sizes[f"{width}×{height}"] += 1
        self._without_landmarks += not np.isfinite(record["landmarks"]).all()
        for name, values in self._factors.items():
            values.append(record[f"factors/{name}"])
        self._count += 1

    def result(self) -> Statistics:
        return Statistics(
            records=self._count,
            sizes=self._sizes,
            without_landmarks=self._without_landmarks,
            captions={kind: tally.result() for kind, tally in self._captions.items()},
            classes={
                name: Counter({c: self._factors[name].count(i) for i, c in enumerate(classes)})
                for name, classes in self._classes.items()
            },
            numbers={
                name: Spread.of(values)
                for name, values in self._factors.items()
                if name not in self._classes
            },
        )


class _Tally:
    """What `Captions` is made of, record by record."""

    def __init__(self, kind: str, tokens: Tokens | None):
        self._kind = kind
        self._tokens = tokens
        self._texts: Counter[str] = Counter()
        self._words: Counter[str] = Counter()
        self._lengths: list[int] = []
        self._counts: list[int] = []
        self._areas: list[float] = []
        self._cut = 0

    def add(self, record: Mapping[str, Any], planes: UInt8[np.ndarray, "h w"]) -> None:
        text, count = record[f"{self._kind}_caption"], record[f"{self._kind}_count"]
        self._texts[text] += 1
        self._words.update(re.findall(r"\w+", text.lower()))
        if self._tokens is not None:
            self._lengths.append(int(self._tokens.phrases(text, [(0, len(text))]).sum()))
        self._counts.append(count)
        self._areas += unpack_masks(planes, count).mean((1, 2)).tolist()
        self._cut += int((~record[f"{self._kind}_tokens"][:count].any(1)).sum())

    def result(self) -> Captions:
        return Captions(
            captions=self._texts.total(),
            distinct=len(self._texts),
            empty=self._texts[""],
            tokens=Spread.of(self._lengths),
            words=self._words,
            masks=Spread.of(self._counts),
            areas=Spread.of(self._areas),
            blank=self._areas.count(0),
            cut=self._cut,
        )

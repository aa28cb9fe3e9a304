"""One item of upstream's JSON, in either era's form, as one type."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from data.schema import CAPTION_KINDS
from data.upstream.index import Repeated, key_of


class BadItem(Exception):
    """What is wrong with one item: every problem, each with what was expected."""

    def __init__(self, *problems: str):
        super().__init__("; ".join(problems))
        self.problems = problems


class Mask(NamedTuple):
    """Where a phrase is seen, as the file names it."""

    path: str
    """Relative to the mask root."""
    tokens: Sequence[int]
    """Positions among CLIP's 77, as they stand in the file."""


class Captioned(NamedTuple):
    """A caption and the masks of its phrases."""

    text: str
    masks: Sequence[Mask]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """One picture; paths are relative to their roots."""

    key: str
    image: str
    face: str
    embedding: str
    captions: Mapping[str, Captioned]
    """One per CAPTION_KINDS."""
    landmarks: Float[np.ndarray, "5 2"]
    """In pixels of the upright picture; NaN if unknown."""

    @property
    def masks(self) -> list[str]:
        """Paths of all masks, each once."""
        paths = [mask.path for caption in self.captions.values() for mask in caption.masks]
        return list(dict.fromkeys(paths))


_ERAS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "attribute": (
        ("face_attribute_caption",),
        ("atrribute_parsing_masks", "attribute_parsing_masks"),
        "Attribute/",
    ),
    "emotion": (("face_emotion_caption",), ("emotion_parsing_masks",), "Emotion/"),
    "older": (("face_short_caption", "face_caption"), ("parsing_masks",), ""),
}
"""Where captions are: names of the text, the first that is there counting; names of the masks, of
which one may be there; the masks' folder."""


def parse(number: int, content: Mapping[str, Any]) -> Item:
    """The item of this number in the list.

    Raises:
      BadItem: its form is not upstream's.
    """
    problems: list[str] = []
    if isinstance(content, Repeated):
        problems.append("a name comes twice in it: keep one of each")
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        problems.append("half of a character is in it (a lone surrogate): write its text anew")
    image = content.get("image")
    if not isinstance(image, str) or not image:
        problems.append(f"image must be a path, got {image!r}")
    face = content.get("face")
    first = face[0] if isinstance(face, list) and face else face
    if not isinstance(first, str) or not first:
        problems.append(f"face must be a list that begins with a path, got {face!r}")
    captions = _captions(content, problems)
    landmarks = _landmarks(content.get("landmarks"), problems)
    if problems:
        raise BadItem(*problems)
    assert isinstance(image, str)
    assert isinstance(first, str)
    return Item(
        key=key_of(number, content),
        image=image,
        face=first,
        embedding=first.replace(".jpg", ".pt")
        if ".jpg" in first  # exactly upstream's rule
        else str(PurePosixPath(first).with_suffix(".pt")),
        captions=captions,
        landmarks=landmarks,
    )


def _captions(content: Mapping[str, Any], problems: list[str]) -> dict[str, Captioned]:
    found = {era: _captioned(content, era, problems) for era in _ERAS}
    newer = [caption for kind in CAPTION_KINDS if (caption := found[kind])]
    lone = newer[0] if newer else found["older"]
    if lone is None:
        if not problems:
            names = [name for texts, _, _ in _ERAS.values() for name in texts]
            problems.append(f"no caption: expected one of {', '.join(names)}")
        return {}
    return {kind: found[kind] or lone for kind in CAPTION_KINDS}


def _captioned(content: Mapping[str, Any], era: str, problems: list[str]) -> Captioned | None:
    texts, lists, folder = _ERAS[era]
    name = next((name for name in texts if name in content), None)
    there = [name for name in lists if name in content]
    if len(there) > 1:
        problems.append(f"{' and '.join(there)} are both there: keep one")
    if name is None:
        if there:
            problems.append(f"{there[0]} without {' or '.join(texts)}")
        return None
    text = content[name]
    if isinstance(text, list) and text:
        text = text[0]
    if not isinstance(text, str):
        problems.append(f"{name} must be text, got {text!r}")
        return None
    if not text.strip():
        problems.append(f"{name} is empty: describe the picture")
        return None
    listed = content[there[0]] if there else []
    if not isinstance(listed, list):
        problems.append(f"{there[0]} must be a list, got {listed!r}")
        return None
    masks = [_mask(entry, f"{there[0]}[{n}]", folder, problems) for n, entry in enumerate(listed)]
    return Captioned(text, [mask for mask in masks if mask])


def _mask(entry: Any, name: str, folder: str, problems: list[str]) -> Mask | None:
    expected = 'expected {"mask": path, "token_indices": [whole numbers]}'
    if not isinstance(entry, dict):
        problems.append(f"{name} is {entry!r}: {expected}")
        return None
    path, tokens = entry.get("mask"), entry.get("token_indices")
    if isinstance(entry, Repeated):
        problems.append(f"{name}: a name comes twice in it: keep one of each")
    if not isinstance(path, str) or not path:
        problems.append(f"{name} has the mask {path!r}: {expected}")
        return None
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        problems.append(f"{name} has the token_indices {tokens!r}: {expected}")
        return None
    return Mask(folder + path, tokens)


def _landmarks(value: Any, problems: list[str]) -> Float[np.ndarray, "5 2"]:
    unknown = np.full((5, 2), math.nan, np.float32)
    if value is None:
        return unknown
    try:
        points = np.array(value, np.float32)
    except (TypeError, ValueError):
        points = unknown[0]
    if points.shape != (5, 2) or not np.isfinite(points).all():
        problems.append(f"landmarks must be five [x, y] in pixels, got {value!r}")
        return unknown
    return points

"""What pictures of records are drawn with: tiles, colours, and captions in them."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from fmv2.tokens import Tokens

Color = tuple[int, int, int]

COLORS: tuple[Color, ...] = (
    (255, 105, 97),
    (97, 205, 255),
    (255, 214, 82),
    (122, 224, 122),
    (218, 140, 255),
    (255, 160, 70),
    (90, 235, 205),
    (255, 130, 195),
)
"""Phrase k's, of masks and words: told apart on photographs and on the dark page."""

PAGE, INK, FAINT = (22, 24, 28), (225, 228, 232), (130, 136, 145)
TILE, GAP, TEXT = 208, 12, 460
"""Side of a tile, what is between two, and the width of the column of text; in pixels."""


class Word(NamedTuple):
    """A word of a caption, and the phrase that it belongs to."""

    text: str
    phrase: int | None


def words(caption: str, tokens: Tokens, phrases: Bool[np.ndarray, "k 77"]) -> list[Word]:
    """A caption's words with their phrases, found again by the tokens that they share.

    Args:
      tokens: the tokenizer that the phrases were marked with.
      phrases: each one's tokens, as records hold them.
    """
    spans = [match.span() for match in re.finditer(r"\S+", caption)]
    if not spans:
        return []
    shared = tokens.phrases(caption, spans).astype(int) @ phrases.T.astype(int)
    return [
        Word(caption[start:end], int(row.argmax()) if row.any() else None)
        for (start, end), row in zip(spans, shared, strict=True)
    ]


def font(size: int) -> Any:
    """The one that comes with Pillow."""
    return ImageFont.load_default(size)


def page(columns: Sequence[str], rows: int) -> Image.Image:
    """Dark and empty, with the columns' titles; room for text is on the right."""
    size = (left(len(columns)) + TEXT, top(rows))
    made = Image.new("RGB", size, PAGE)
    pen = ImageDraw.Draw(made)
    for column, title in enumerate(columns):
        pen.text((left(column), 10), title, FAINT, font(14))
    return made


def left(column: int) -> int:
    """Where a column of tiles begins."""
    return GAP + column * (TILE + GAP)


def top(row: int) -> int:
    """Where a row of tiles begins."""
    return 34 + row * (TILE + GAP)


def fit(pixels: np.ndarray) -> tuple[UInt8[np.ndarray, "t t 3"], float, np.ndarray]:
    """The whole picture in a tile; how much it was scaled, and where its corner (x, y) is."""
    scale = TILE / max(pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    tile = np.full((TILE, TILE, 3), PAGE, np.uint8)
    top, left = (TILE - height) // 2, (TILE - width) // 2
    tile[top : top + height, left : left + width] = cv2.resize(
        pixels, (width, height), interpolation=how
    )
    return tile, scale, np.array([left, top])


def glowing(
    tile: UInt8[np.ndarray, "t t 3"], maps: Float[np.ndarray, "k g g"]
) -> UInt8[np.ndarray, "t t 3"]:
    """Maps of [0, 1] over a paler picture, each in its phrase's colour."""
    pale = 0.35 * tile + 0.15 * tile.mean(-1, keepdims=True)
    for small, color in zip(maps, COLORS, strict=False):
        weight = cv2.resize(small, (TILE, TILE), interpolation=cv2.INTER_CUBIC)[..., None]
        pale = pale + 0.6 * weight.clip(0, 1) * (np.array(color) - pale)
    return pale.clip(0, 255).astype(np.uint8)


def write_words(
    pen: ImageDraw.ImageDraw, found: Sequence[Word], left: int, top: int, bottom: int
) -> int:
    """Wrapped within the text column; what does not fit ends in an ellipsis. Returns its end."""
    letters, line = font(17), 23
    x = left
    for word in found:
        length = pen.textlength(word.text + " ", letters)
        if x > left and x + length > left + TEXT - GAP:
            x, top = left, top + line
        if top + line > bottom:
            pen.text((x, top - line), "…", INK, letters)
            return top
        color = INK if word.phrase is None else COLORS[word.phrase]
        pen.text((x, top), word.text, color, letters)
        x += length
    return top + line

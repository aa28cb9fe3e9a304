"""Records on one picture, for the eye: what is said, in the colours of where it is seen."""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from data.codec import decode, unpack_masks
from data.dataset import Records
from data.schema import CAPTION_KINDS
from data.tokens import Tokens

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

_PAGE, _INK, _FAINT = (22, 24, 28), (225, 228, 232), (130, 136, 145)
_TILE, _GAP, _TEXT = 208, 12, 460
_COLUMNS = ("image, landmarks", "attribute masks", "emotion masks", "shading", "aligned face")
_WIDTH = _GAP + len(_COLUMNS) * (_TILE + _GAP) + _TEXT


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


def draw(records: Records, numbers: Sequence[int], tokens: Tokens) -> Image.Image:
    """One row per record: picture, masks of both captions, shading, face, and the captions.

    Args:
      tokens: the data set's own tokenizer.
    Raises:
      UserError: a record is damaged.
    """
    header = 34
    page = Image.new("RGB", (_WIDTH, header + len(numbers) * (_TILE + _GAP)), _PAGE)
    pen = ImageDraw.Draw(page)
    for column, title in enumerate(_COLUMNS):
        pen.text((_left(column), 10), title, _FAINT, _font(14))
    for row, number in enumerate(numbers):
        top = header + row * (_TILE + _GAP)
        record = records[number]
        try:
            tiles = list(_tiles(record))
        except ValueError as error:
            raise records.fault(number, record["key"], error) from error
        for column, tile in enumerate(tiles):
            page.paste(Image.fromarray(tile), (_left(column), top))
        _write_captions(pen, (_left(len(_COLUMNS)), top), record, tokens)
    return page


def save(sheet: Image.Image, path: Path) -> None:
    """As PNG, whole or not at all."""
    descriptor, unfinished = tempfile.mkstemp(suffix=".png", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            sheet.save(file, "PNG")
        Path(unfinished).replace(path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


def _left(column: int) -> int:
    return _GAP + column * (_TILE + _GAP)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _tiles(record: Mapping[str, Any]) -> Iterator[UInt8[np.ndarray, "t t 3"]]:
    """In the order of _COLUMNS."""
    image = decode(record["image"])
    plain, scale, corner = _fit(image)
    yield _dotted(plain, record["landmarks"] * scale + corner)
    for kind in CAPTION_KINDS:
        planes = decode(record[f"{kind}_masks"], channels=1)
        yield _overlaid(plain, unpack_masks(planes, record[f"{kind}_count"]))
    yield _fit(decode(record["shading"]))[0]
    yield _fit(decode(record["face"]))[0]


def _fit(pixels: np.ndarray) -> tuple[UInt8[np.ndarray, "t t 3"], float, np.ndarray]:
    """The whole picture in a tile; how much it was scaled, and where its corner (x, y) is."""
    scale = _TILE / max(pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    tile = np.full((_TILE, _TILE, 3), _PAGE, np.uint8)
    top, left = (_TILE - height) // 2, (_TILE - width) // 2
    tile[top : top + height, left : left + width] = cv2.resize(
        pixels, (width, height), interpolation=how
    )
    return tile, scale, np.array([left, top])


def _dotted(tile: np.ndarray, points: np.ndarray) -> np.ndarray:
    tile = tile.copy()
    for x, y in points[np.isfinite(points).all(1)]:
        place = (round(float(x)), round(float(y)))
        cv2.circle(tile, place, 3, (0, 0, 0), -1, cv2.LINE_AA)
        cv2.circle(tile, place, 2, (255, 255, 255), -1, cv2.LINE_AA)
    return tile


def _overlaid(tile: np.ndarray, masks: UInt8[np.ndarray, "n h w"]) -> np.ndarray:
    """Each mask tinted and outlined in its colour, over a paler picture."""
    grey = tile.mean(-1, keepdims=True)
    tinted = 0.55 * tile + 0.15 * grey
    covers = [_fit(np.repeat(255 * mask[..., None], 3, axis=-1))[0][..., 0] > 127 for mask in masks]
    for cover, color in zip(covers, COLORS, strict=False):
        tinted[cover] = 0.55 * tinted[cover] + 0.45 * np.array(color)
    tinted = np.ascontiguousarray(tinted.astype(np.uint8))
    for cover, color in zip(covers, COLORS, strict=False):
        outline, _ = cv2.findContours(cover.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tinted, outline, -1, color, 1, cv2.LINE_AA)
    return tinted


def _write_captions(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], record: Mapping[str, Any], tokens: Tokens
) -> None:
    left, top = corner
    bottom = top + _TILE
    pen.text((left, top), record["key"], _FAINT, _font(13))
    top += 22
    for kind in CAPTION_KINDS:
        pen.text((left, top), kind, _FAINT, _font(13))
        phrases = record[f"{kind}_tokens"][: record[f"{kind}_count"]]
        found = words(record[f"{kind}_caption"], tokens, phrases)
        top = _write_words(pen, found, left, top + 18, bottom) + 8


def _write_words(
    pen: ImageDraw.ImageDraw, found: Sequence[Word], left: int, top: int, bottom: int
) -> int:
    """Wrapped within the text column; what does not fit ends in an ellipsis. Returns its end."""
    font, line = _font(17), 23
    x = left
    for word in found:
        length = pen.textlength(word.text + " ", font)
        if x > left and x + length > left + _TEXT - _GAP:
            x, top = left, top + line
        if top + line > bottom:
            pen.text((x, top - line), "…", _INK, font)
            return top
        color = _INK if word.phrase is None else COLORS[word.phrase]
        pen.text((x, top), word.text, color, font)
        x += length
    return top + line

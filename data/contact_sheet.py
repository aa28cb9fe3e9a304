"""Records on one picture, for the eye: what is said, in the colours of where it is seen."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from data.codec import decode, unpack_masks
from data.dataset import Records
from data.drawing import COLORS, FAINT, TILE, fit, font, left, page, top, words, write_words
from data.schema import CAPTION_KINDS
from fmv2.tokens import Tokens

_COLUMNS = ("image, landmarks", "attribute masks", "emotion masks", "shading", "aligned face")


def draw(records: Records, numbers: Sequence[int], tokens: Tokens) -> Image.Image:
    """One row per record: picture, masks of both captions, shading, face, and the captions.

    Args:
      tokens: the data set's own tokenizer.
    Raises:
      UserError: a record is damaged.
    """
    sheet = page(_COLUMNS, len(numbers))
    pen = ImageDraw.Draw(sheet)
    for row, number in enumerate(numbers):
        record = records[number]
        try:
            tiles = list(_tiles(record))
        except ValueError as error:
            raise records.fault(number, record["key"], error) from error
        for column, tile in enumerate(tiles):
            sheet.paste(Image.fromarray(tile), (left(column), top(row)))
        _write_captions(pen, (left(len(_COLUMNS)), top(row)), record, tokens)
    return sheet


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


def _tiles(record: Mapping[str, Any]) -> Iterator[UInt8[np.ndarray, "t t 3"]]:
    """In the order of _COLUMNS."""
    image = decode(record["image"])
    plain, scale, corner = fit(image)
    yield _dotted(plain, record["landmarks"] * scale + corner)
    for kind in CAPTION_KINDS:
        planes = decode(record[f"{kind}_masks"], channels=1)
        yield _overlaid(plain, unpack_masks(planes, record[f"{kind}_count"]))
    yield fit(decode(record["shading"]))[0]
    yield fit(decode(record["face"]))[0]


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
    covers = [fit(np.repeat(255 * mask[..., None], 3, axis=-1))[0][..., 0] > 127 for mask in masks]
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
    x, y = corner
    bottom = y + TILE
    pen.text((x, y), record["key"], FAINT, font(13))
    y += 22
    for kind in CAPTION_KINDS:
        pen.text((x, y), kind, FAINT, font(13))
        phrases = record[f"{kind}_tokens"][: record[f"{kind}_count"]]
        found = words(record[f"{kind}_caption"], tokens, phrases)
        y = write_words(pen, found, x, y + 18, bottom) + 8

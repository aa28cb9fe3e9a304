"""One item and its files to one record."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from etils import epath
from jaxtyping import Bool

from data.codec import Caption, Record, encode_png
from data.schema import MASKS, TOKENS
from data.upstream import embedding, pictures
from data.upstream.layout import BadItem, Captioned, Item
from fmv2.tokens import Tokens

TOKENS_OUTSIDE = "token indices that their caption does not reach, dropped"
MASKS_WITHOUT_TOKENS = "masks none of whose token indices their caption reaches, dropped"
MASKS_TOO_MANY = f"masks beyond the {MASKS} largest of a caption, dropped"
MASKS_TOO_SMALL = "masks that vanished as their image shrank, dropped"
FACES_PADDED = "faces padded to squares"

Made = TypeVar("Made")


class Roots(NamedTuple):
    """The folders that an item's paths are relative to."""

    images: epath.Path
    faces: epath.Path
    face_ids: epath.Path
    shading: epath.Path
    masks: epath.Path

    def files(self, item: Item) -> list[epath.Path]:
        """All that the item needs."""
        return [
            self.images / item.image,
            self.faces / item.face,
            self.face_ids / item.embedding,
            self.shading / item.image,
            *(self.masks / path for path in item.masks),
        ]


def make(item: Item, roots: Roots, tokens: Tokens, side: int) -> tuple[Record, Counter[str]]:
    """The record, and how often each lesser fault was mended in it.

    Args:
      side: pixels of the stored image's short side, at most.
    Raises:
      BadItem: with every problem of its files.
    """
    image_path, face_path, embedding_path, shading_path, *mask_paths = roots.files(item)
    problems: list[str] = []

    def tried(function: Callable[..., Made], *args: object) -> Made | None:
        try:
            return function(*args)
        except BadItem as error:
            problems.extend(error.problems)
            return None

    image = tried(pictures.read, image_path)
    face = tried(pictures.read, face_path)
    shading = tried(pictures.read, shading_path)
    face_id = tried(embedding.read, embedding_path)
    masks = [tried(pictures.read, path, "L") for path in mask_paths]
    if image is None:
        raise BadItem(*problems)
    size = pictures.stored_size(image.size, side)
    light = None if shading is None else tried(pictures.over, shading, image, size)
    regions = [None if mask is None else tried(_region, mask, image, size) for mask in masks]
    if problems or face is None or light is None or face_id is None:
        raise BadItem(*problems)

    mended: Counter[str] = Counter()
    if len(set(face.size)) > 1:
        mended[FACES_PADDED] += 1
    by_path = dict(zip(item.masks, regions, strict=True))
    empty = np.zeros((0, size[1], size[0]), bool)
    distinct = {id(caption): caption for caption in item.captions.values()}  # one may be both
    made = {
        name: _caption(caption, by_path, empty, tokens, mended)
        for name, caption in distinct.items()
    }
    scale = np.divide(size, image.size, dtype=np.float32)
    record = Record(
        key=item.key,
        image=pictures.jpeg(image, side),
        face=pictures.jpeg(pictures.square(face), side),
        shading=encode_png(light),
        captions={kind: made[id(caption)] for kind, caption in item.captions.items()},
        face_id=face_id,
        landmarks=(item.landmarks + 0.5) * scale - 0.5,  # centres are at whole numbers
    )
    return record, +mended


def _region(
    mask: pictures.Picture, image: pictures.Picture, size: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    if not (mask.pixels > 127).any():
        raise BadItem(f"{mask.path} is empty: expected white where the phrase's region is")
    return pictures.over(mask, image, size) > 127


def _caption(
    captioned: Captioned,
    regions: Mapping[str, Any],
    empty: Bool[np.ndarray, "0 h w"],
    tokens: Tokens,
    mended: Counter[str],
) -> Caption:
    ids = tokens.ids(captioned.text)
    end = int(np.argmax(ids == tokens.ids("")[1]))  # the end token's place; padding comes after
    found = []
    for mask in captioned.masks:
        inside = [token for token in mask.tokens if 0 < token < end]  # 0 is the start token's
        mended[TOKENS_OUTSIDE] += len(mask.tokens) - len(inside)
        if not inside:
            mended[MASKS_WITHOUT_TOKENS] += 1
        elif not regions[mask.path].any():
            mended[MASKS_TOO_SMALL] += 1
        else:
            found.append((regions[mask.path], inside))
    mended[MASKS_TOO_MANY] += max(len(found) - MASKS, 0)
    largest = np.argsort([-region.sum() for region, _ in found], kind="stable")[:MASKS]
    kept = [found[n] for n in sorted(largest)]
    positions = np.zeros((len(kept), TOKENS), bool)
    for row, (_, inside) in zip(positions, kept, strict=True):
        row[inside] = True
    masks = np.stack([region for region, _ in kept]) if kept else empty
    return Caption(text=captioned.text, masks=masks, tokens=positions)

"""One record and its dice become one sample of a batch: all that happens to it on the host."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from data.codec import decode
from data.geometry import (
    MaskResize,
    flip_labels,
    flip_landmarks,
    flip_words,
    shrink_masks,
)
from data.schema import CAPTION_KINDS, COEFFICIENTS, MASKS, TOKENS, Batch
from fmv2.pictures import Window, resize
from fmv2.tokens import Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drops:
    """How often a condition is hidden, so that the model learns to do without it (for guidance)."""

    text: float = 0.05
    """The caption."""
    id: float = 0.05
    """The identity: embedding and the face's pixels."""
    both: float = 0.05
    """Both. Of these three at most one befalls a sample."""
    face: float = 0.5
    """The face's pixels alone, whatever else is hidden."""
    masks: Literal["with_text", "never", "always"] = "with_text"
    """A caption's masks go with it. As published they never do, and lie over tokens that are only
    padding. Always: no sample has masks, which trains without the map term by the same program."""


class Dice(NamedTuple):
    """What chance decides for one sample."""

    kind: int
    text_dropped: bool
    masks_dropped: bool
    id_dropped: bool
    face_dropped: bool
    flipped: bool

    @classmethod
    def throw(
        cls, seed: int, position: int, *, attribute: float, drops: Drops, flip: float
    ) -> "Dice":
        """The same for the same seed and place in the stream, whoever throws them."""
        rng = np.random.Generator(np.random.Philox(key=[seed, position]))
        kind, drop, face, flipped = rng.random(4)
        text_only = drop < drops.text
        id_only = drops.text <= drop < drops.text + drops.id
        both = drops.text + drops.id <= drop < drops.text + drops.id + drops.both
        id_dropped = id_only or both
        return cls(
            kind=int(kind >= attribute),
            text_dropped=bool(text_only or both),
            masks_dropped=drops.masks == "always"
            or bool(drops.masks == "with_text" and (text_only or both)),
            id_dropped=bool(id_dropped),
            face_dropped=bool(face < drops.face or id_dropped),
            flipped=bool(flipped < flip),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
    """How records become samples. It travels to worker processes."""

    tokens: Tokens
    size: int
    face_size: int
    grids: tuple[int, ...]
    mask_resize: MaskResize
    extras: frozenset[str]

    def __call__(self, number: int, record: Mapping[str, Any], dice: Dice) -> Batch:
        """A `Batch` without its first axis, in NumPy.

        Raises:
          ValueError: a picture cannot be decoded, or is not of the image's size.
        """
        image = decode(record["image"])
        height, width = image.shape[:2]
        window = Window.of(height, width, self.size)

        def alike(name: str, channels: int) -> np.ndarray:
            pixels = decode(record[name], channels=channels)
            if pixels.shape[:2] != (height, width):
                raise ValueError(f"{name} is {pixels.shape[:2]}, but the image {height, width}")
            return pixels

        extras = self._extras(record)
        fields: dict[str, Any] = {  # the batch's, by its names
            "image": window.picture(image),
            "face": resize(decode(record["face"]), self.face_size),
            "shading": window.picture(alike("shading", 3)),
            "landmarks": window.landmarks(record["landmarks"]),
        }
        if "labels" in self.extras:
            extras["labels"] = window.labels(alike("labels", 1))

        kind = CAPTION_KINDS[dice.kind]
        if not record[f"{kind}_caption"]:  # rather the other than none
            kind = CAPTION_KINDS[1 - dice.kind]
        if dice.masks_dropped:
            valid, token_mask = np.zeros(MASKS, bool), np.zeros((MASKS, TOKENS), bool)
            masks = {grid: np.zeros((MASKS, grid, grid), np.float32) for grid in self.grids}
        else:
            token_mask = record[f"{kind}_tokens"]
            # A phrase that was cut off with the end of its caption has no token left.
            valid = (np.arange(MASKS) < record[f"{kind}_count"]) & token_mask.any(1)
            masks = {}
            if self.grids:
                planes = window.cut(alike(f"{kind}_masks", 1))
                masks = shrink_masks(planes, record[f"{kind}_count"], self.grids, self.mask_resize)
            for mask in masks.values():
                mask[~valid] = 0
        ids = self.tokens.ids("" if dice.text_dropped else record[f"{kind}_caption"])

        if dice.flipped:
            left, right = sides(self.tokens)
            assert left is not None  # the loader has seen to it
            assert right is not None
            ids = flip_words(ids, left, right)
            fields |= {name: fields[name][:, ::-1] for name in ("image", "face", "shading")}
            fields["landmarks"] = flip_landmarks(fields["landmarks"], self.size)
            masks = {grid: mask[:, :, ::-1] for grid, mask in masks.items()}
            if "labels" in extras:
                extras["labels"] = flip_labels(extras["labels"])

        face_id = record["face_id"]
        fields |= {
            "index": np.int32(number),
            "input_ids": ids,
            "caption_kind": np.int32(CAPTION_KINDS.index(kind)),
            "token_mask": token_mask,
            "mask_valid": valid,
            "masks": masks,
            "face_id": np.zeros_like(face_id) if dice.id_dropped else face_id,
            "text_dropped": np.bool_(dice.text_dropped),
            "face_dropped": np.bool_(dice.face_dropped),
            "id_dropped": np.bool_(dice.id_dropped),
        }
        return Batch(**fields, **extras)

    def _extras(self, record: Mapping[str, Any]) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        if "coefficients" in self.extras:
            extras["coefficients"] = {name: record[f"coefficients/{name}"] for name in COEFFICIENTS}
        if "latent_moments" in self.extras:
            extras["latent_moments"] = record["latent_moments"]
        if "factors" in self.extras:
            extras["factors"] = {
                name.removeprefix("factors/"): _narrow(value)
                for name, value in record.items()
                if name.startswith("factors/")
            }
        return extras


def sides(tokens: Tokens) -> tuple[int | None, int | None]:
    """The ids of "left" and "right", where each is one token."""
    return tokens.single("left"), tokens.single("right")


def _narrow(value: Any) -> np.ndarray:
    """A factor as a device holds it."""
    value = np.asarray(value)
    return value.astype(np.int32 if np.issubdtype(value.dtype, np.integer) else np.float32)

"""A record in memory, and its way into and out of bytes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from data.schema import CAPTION_KINDS, MASKS, TOKENS, Schema, nest

JPEG_QUALITY = 95
MOST_PIXELS = 2**26
"""A picture larger than this (8192²) is refused from its header, before it is decoded."""

# What decodes fastest, at hardly more bytes: a render is smooth, planes are flat.
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_FILTER]
_PNG_COLOR = [*_PNG, cv2.IMWRITE_PNG_FAST_FILTERS]
_PNG_PLANE = [*_PNG, cv2.IMWRITE_PNG_FILTER_NONE]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Caption:
    """What a picture shows, and where what its phrases name is seen. n phrases, at most MASKS."""

    text: str
    masks: Bool[np.ndarray, "n h w"]
    tokens: Bool[np.ndarray, "n 77"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """One record, its pictures encoded, its masks not. The fields are those of `data.schema`."""

    key: str
    image: bytes
    face: bytes
    shading: bytes
    captions: Mapping[str, Caption]
    """One per CAPTION_KINDS."""
    face_id: Float[np.ndarray, "512"]
    landmarks: Float[np.ndarray, "5 2"]
    optional: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Optional fields by their names in the schema: encoded pictures or arrays."""
    factors: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Example(NamedTuple):
    """A record as a data set gives it: its fields by the schema's names, pictures still encoded."""

    fields: Mapping[str, Any]


def to_example(record: Record, schema: Schema) -> dict[str, Any]:
    """The record as TFDS features encode it.

    Raises:
      ValueError: fields beyond the schema, or short of it.
    """
    flat: dict[str, Any] = {
        "key": record.key,
        "image": record.image,
        "face": record.face,
        "shading": record.shading,
        "face_id": np.asarray(record.face_id, np.float32),
        "landmarks": np.asarray(record.landmarks, np.float32),
    }
    for kind in CAPTION_KINDS:
        caption = record.captions[kind]
        tokens = np.zeros((MASKS, TOKENS), bool)
        tokens[: len(caption.tokens)] = caption.tokens
        flat |= {
            f"{kind}_caption": caption.text,
            f"{kind}_masks": encode_png(pack_masks(caption.masks)),
            f"{kind}_tokens": tokens,
            f"{kind}_count": len(caption.masks),
        }
    flat |= record.optional
    flat |= {f"factors/{name}": value for name, value in record.factors.items()}
    expected = {*schema.fields(), *(f"factors/{factor.name}" for factor in schema.factors)}
    if wrong := expected ^ set(flat):
        raise ValueError(
            f"record {record.key!r}: it and the schema differ in {', '.join(sorted(wrong))}"
        )
    return nest(flat)


def pack_masks(masks: Bool[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "h w"]:
    """Bit planes: bit k of a pixel is mask k.

    Raises:
      ValueError: more than MASKS masks.
    """
    if masks.ndim != 3 or len(masks) > MASKS:
        raise ValueError(f"masks must be (n, h, w) with n at most {MASKS}, got {masks.shape}")
    planes = np.zeros(masks.shape[1:], np.uint8)
    for bit, mask in enumerate(masks):
        planes |= mask.astype(np.uint8) << bit
    return planes


def unpack_masks(planes: UInt8[np.ndarray, "h w"], count: int) -> UInt8[np.ndarray, "n h w"]:
    """The first `count` masks of bit planes, as 0 and 1."""
    return np.stack([(planes >> bit) & 1 for bit in range(count)]) if count else np.zeros(
        (0, *planes.shape), np.uint8
    )  # fmt: skip


def encode_png(pixels: UInt8[np.ndarray, "h w *c"]) -> bytes:
    """A lossless picture: RGB, or one channel."""
    return _encode(".png", pixels, _PNG_COLOR if pixels.ndim == 3 else _PNG_PLANE)


def encode_jpeg(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """RGB, at JPEG_QUALITY."""
    return _encode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def _encode(ending: str, pixels: np.ndarray, options: Sequence[int]) -> bytes:
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    done, encoded = cv2.imencode(ending, bgr, options)
    if not done:
        raise ValueError(f"cannot write {pixels.shape} {pixels.dtype} as {ending}")
    return encoded.tobytes()


def decode(encoded: bytes, *, channels: int = 3) -> np.ndarray:
    """RGB (h, w, 3), or (h, w) where one channel is asked for, as bytes.

    Nothing is turned by EXIF: records are upright.

    Raises:
      ValueError: not a picture, or cut short.
    """
    flag = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
    flag |= cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
    if pixels is None:
        raise ValueError(f"{len(encoded)} bytes are not a picture that can be read")
    return pixels

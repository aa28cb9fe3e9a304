"""Pictures as users have them: checked before and while they are decoded, then made fit."""

import dataclasses
import io
from typing import Literal

import cv2
import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from data.codec import MOST_PIXELS, encode_jpeg
from data.upstream.layout import BadItem

_ORIENTATION = 0x0112
_SMALLER = f"expected at most {MOST_PIXELS} pixels"


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture, upright."""

    path: epath.Path
    pixels: UInt8[np.ndarray, "h w *c"]
    fit: bytes | None = None
    """The file itself, if a record can hold it as it is."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.pixels.shape[1], self.pixels.shape[0]


def read(path: epath.Path, mode: Literal["RGB", "L"] = "RGB") -> Picture:
    """Decodes one file.

    Raises:
      BadItem: it is missing, no picture, cut short, too large, or of more than 8 bits.
    """
    encoded = read_bytes(path)
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise BadItem(f"{path} has {width}×{height} pixels: {_SMALLER}")
            if image.mode.startswith(("I", "F")):
                raise BadItem(f"{path} has more than 8 bits per channel: expected 8")
            image.load()  # Pillow, unlike OpenCV, refuses what is cut short
            orientation = image.getexif().get(_ORIENTATION, 1)
            plain = (image.format, image.mode, orientation) == ("JPEG", "RGB", 1)
            fit = encoded if plain and not image.info.get("progressive") else None
            upright = image if orientation == 1 else ImageOps.exif_transpose(image)
            return Picture(path, np.asarray(upright.convert(mode)), fit)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadItem(f"{path} is too large: {_SMALLER}") from error
    except UnidentifiedImageError as error:
        raise BadItem(f"{path} is no picture that can be read") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise BadItem(f"{path} is cut short or damaged: {error}") from error


def read_bytes(path: epath.Path) -> bytes:
    """A file's bytes.

    Raises:
      BadItem: there is none, or it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BadItem(f"{path} is missing") from error
    except OSError as error:
        raise BadItem(f"{path} cannot be read: {error.strerror or error}") from error


def stored_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height after shrinking the short side to `side`; never enlarged."""
    scale = min(1.0, side / min(size))
    return round(size[0] * scale), round(size[1] * scale)


def jpeg(picture: Picture, side: int) -> bytes:
    """As a record's JPEG, its short side at most `side`: the file's own bytes if they will do."""
    size = stored_size(picture.size, side)
    if picture.fit is not None and size == picture.size:
        return picture.fit
    return encode_jpeg(resize(picture.pixels, size))


def square(picture: Picture) -> Picture:
    """Padded with black to a square, its content in the middle."""
    width, height = picture.size
    if width == height:
        return picture
    x, y = max(height - width, 0), max(width - height, 0)
    sides = (y // 2, y - y // 2, x // 2, x - x // 2)
    return Picture(
        picture.path, cv2.copyMakeBorder(picture.pixels, *sides, cv2.BORDER_CONSTANT, value=0)
    )


def over(picture: Picture, image: Picture, size: tuple[int, int]) -> UInt8[np.ndarray, "h w *c"]:
    """What lies over the image, at the size that the image is stored at.

    Raises:
      BadItem: it has not the image's shape, to within the rounding of a side.
    """
    (width, height), (image_width, image_height) = picture.size, image.size
    if abs(width * image_height - height * image_width) > max(image.size):
        raise BadItem(
            f"{picture.path} has {width}×{height} pixels and its image {image_width}×"
            f"{image_height}: expected the same, or both sides scaled alike"
        )
    return resize(picture.pixels, size)


def resize(
    pixels: UInt8[np.ndarray, "h w *c"], size: tuple[int, int]
) -> UInt8[np.ndarray, "H W *c"]:
    """To width and height: areas averaged where it shrinks, linear where it grows."""
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    shrinks = size[0] < pixels.shape[1]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)

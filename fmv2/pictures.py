"""Pictures of any kind to bytes: RGB, upright, square."""

import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from fmv2.errors import UserError

Picture = str | Path | Image.Image | np.ndarray
"""A file, a picture of Pillow's, or an array: bytes, 16 bits, or floats in [0, 1]; grey, RGB or
RGBA."""

_BACKGROUND = 255
"""What is seen through a transparent picture: white, as pages have it."""


class Window(NamedTuple):
    """The centred square of a picture, which becomes `size` pixels wide.

    The crop comes first and at whole pixels: what is cut off is never resampled, and masks can be
    averaged from their own pixels. Where `side` is `size` nothing is resampled at all.
    """

    top: int
    left: int
    side: int
    size: int

    @classmethod
    def of(cls, height: int, width: int, size: int) -> "Window":
        side = min(height, width)
        return cls((height - side) // 2, (width - side) // 2, side, size)

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        """The square at its own resolution."""
        return pixels[self.top : self.top + self.side, self.left : self.left + self.side]

    def picture(self, pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "size size 3"]:
        return resize(self.cut(pixels), self.size)

    def labels(self, labels: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "size size"]:
        """Each pixel the label at its centre: labels do not mix."""
        place = ((np.arange(self.size) + 0.5) * self.side / self.size).astype(int)
        return self.cut(labels)[np.ix_(place, place)]

    def landmarks(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Pixel centres are at whole numbers, so that corners, not centres, scale. NaN stays."""
        moved = points - np.array([self.left, self.top], np.float32)
        scaled = (moved + 0.5) * (self.size / self.side) - 0.5
        return scaled.astype(np.float32)


def square(pixels: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The centred square at this size."""
    height, width, _ = pixels.shape
    return Window.of(height, width, size).picture(pixels)


def resize(pixels: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """A square picture at another size: averaged when it shrinks, interpolated when it grows."""
    if len(pixels) == size:
        return pixels
    how = cv2.INTER_AREA if len(pixels) > size else cv2.INTER_LINEAR
    return cv2.resize(pixels, (size, size), interpolation=how)


def read_picture(source: Picture) -> UInt8[np.ndarray, "h w 3"]:
    """The picture as it is meant to be seen: turned by its EXIF, 16 bits brought to 8, transparent
    places over white.

    Raises:
      UserError: it is not there, no picture, cut short, or an array that is none.
    """
    if isinstance(source, np.ndarray):
        return _of_array(source)
    if isinstance(source, Image.Image):
        return _of_pillow(source, "the picture")
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{path}: no such file" if not path.exists() else f"{path}: not a file")
    try:
        with warnings.catch_warnings():
            # Large is no fault; what is too large raises.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                return _of_pillow(opened, str(path))
    except Image.UnidentifiedImageError as e:
        raise UserError(f"{path}: not a picture that can be read, such as PNG or JPEG") from e
    except PermissionError as e:
        raise UserError(f"{path}: may not be read") from e


def read_mask(source: Picture) -> Float[np.ndarray, "h w"]:
    """A picture's lightness in [0, 1]; an array of truth values is one too.

    Raises:
      UserError: as `read_picture`.
    """
    if isinstance(source, np.ndarray) and source.dtype == bool:
        source = source.astype(np.float32)
    return read_picture(source).mean(axis=-1, dtype=np.float32) / 255


def _of_pillow(image: Image.Image, name: str) -> UInt8[np.ndarray, "h w 3"]:
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):
            return _of_array(_unit(np.asarray(image)))
        if image.has_transparency_data:
            page = Image.new("RGBA", image.size, (_BACKGROUND,) * 3 + (255,))
            image = Image.alpha_composite(page, image.convert("RGBA"))
        return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise UserError(f"{name}: cut short, damaged or too large: {e}") from e


def _unit(deep: np.ndarray) -> np.ndarray:
    """Grey of 16 bits or floats; Pillow calls the former 32 bits where a file says no more."""
    if deep.dtype.kind == "f":
        return deep / 255 if deep.max(initial=0) > 1 else deep
    return np.clip(deep, 0, 65535).astype(np.uint16)


def _of_array(array: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    if array.ndim == 2:
        array = array[..., None]
    kinds = (np.uint8, np.uint16, np.float16, np.float32, np.float64)
    faults = []
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        faults.append("expected (h, w), (h, w, 1), (h, w, 3) or (h, w, 4)")
    if array.dtype not in kinds:
        faults.append("expected uint8, uint16, or floats in [0, 1]")
    elif array.dtype.kind == "f" and not (np.isfinite(array).all() and _in_unit(array)):
        faults.append("expected floats in [0, 1]: divide by 255, or give uint8")
    if faults:
        raise UserError(f"a picture of {array.shape}, {array.dtype}: {'; '.join(faults)}")
    full = 1.0 if array.dtype.kind == "f" else float(np.iinfo(array.dtype).max)
    if array.dtype == np.uint8 and array.shape[-1] == 3:
        return array
    unit = array.astype(np.float32) / full
    color, alpha = unit[..., :3], unit[..., 3:]
    if alpha.size:
        color = color * alpha + _BACKGROUND / 255 * (1 - alpha)
    rgb = np.broadcast_to(color, (*array.shape[:2], 3))
    return np.round(255 * rgb).astype(np.uint8)


def _in_unit(array: np.ndarray) -> bool:
    return bool(array.min() >= 0 and array.max() <= 1)

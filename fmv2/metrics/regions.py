"""Where a picture changes and where phrases look, against the region that is meant."""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Num


def attention_iou(attention: Float[np.ndarray, "g g"], region: Bool[np.ndarray, "s s"]) -> float:
    """Intersection over union of a region and as much of the picture as the phrase looks at most.

    The map is brought to the picture's size, and as many of its largest pixels are taken as the
    region has, so that no threshold needs to be chosen: 1 is a perfect map. Of pixels that are
    alike at the border, each counts by the share of them that is taken; so a map that is the same
    everywhere has what chance has, see `chance_iou`. NaN where the region is empty.

    Args:
      attention: of one phrase, of any scale; the picture's side is a multiple of its own.
    """
    size, count = region.shape, int(region.sum())
    if not count:
        return float("nan")
    # Bilinear between the cells' centres, which are the picture's in `cv2` too.
    fine = cv2.resize(np.asarray(attention, np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    least = np.partition(fine, fine.size - count, axis=None)[fine.size - count]
    above, border = fine > least, fine == least
    share = (count - above.sum()) / border.sum()
    common = region[above].sum() + share * region[border].sum()
    return float(common / (2 * count - common))


def chance_iou(region: Bool[np.ndarray, "s s"]) -> float:
    """Of a map that says nothing; NaN where the region is empty."""
    share = float(region.mean())
    return share / (2 - share) if share else float("nan")


def change(
    one: Num[np.ndarray, "n h w 3"],
    other: Num[np.ndarray, "n h w 3"],
    where: Bool[np.ndarray, "n h w"],
) -> Float[np.ndarray, " n"]:
    """Root mean square difference of two pictures within a part of them, in [0, 1]; NaN where that
    is empty. What changes outside a region is `change(one, other, ~region)`.

    Args:
      one: bytes, or [0, 1].
      other: likewise.
    """
    squares = np.square(in_unit(one) - in_unit(other)).mean(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.sqrt((squares * where).sum(axis=(1, 2)) / where.sum(axis=(1, 2)))


def in_unit(images: Num[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n h w 3"]:
    """Bytes or [0, 1] as [0, 1], in float64."""
    images = np.asarray(images)
    scale = 255 if images.dtype == np.uint8 else 1
    return images.astype(np.float64) / scale

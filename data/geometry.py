"""Where a record's pixels go on the way into a batch: one window for picture, masks and points."""

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from data.codec import unpack_masks
from data.schema import MASKS
from fmv2.face.labels import mirrored

MaskResize = Literal["area", "bilinear"]

_MIRRORED_LABELS = np.array(mirrored(), np.uint8)
_LOWEST_OF_EIGHT = np.uint64(0x0101010101010101)
_MIRRORED_POINTS = (1, 0, 2, 4, 3)  # eyes and corners of the mouth change sides, the nose stays


def shrink_masks(
    planes: UInt8[np.ndarray, "s s"], count: int, grids: Sequence[int], how: MaskResize
) -> dict[int, Float[np.ndarray, "8 g g"]]:
    """The first `count` bit planes of a square on each grid: the fraction of a cell they cover.

    Args:
      how: `area` averages all of a cell. `bilinear` looks at no more than four pixels of it,
        exactly as `torch.nn.functional.interpolate` without antialiasing.
    """
    side, finest = len(planes), max(grids, default=1)
    nested = all(finest % grid == 0 for grid in grids)  # as the levels of a U-Net are
    if how == "area" and nested and side % finest == side % 8 == 0 and side < 256 * finest:
        cells = _count_cells(planes, count, finest)
        return {grid: _merge_cells(cells, grid) / side**2 * grid**2 for grid in grids}
    weights = _area_weights if how == "area" else _bilinear_weights
    return {grid: _weigh(planes, count, weights(side, grid)) for grid in grids}


def _count_cells(
    planes: UInt8[np.ndarray, "s s"], count: int, grid: int
) -> Float[np.ndarray, "count g g"]:
    """Pixels of each mask in each cell: eight at a time, each in a byte, which counts a column."""
    eight = np.ascontiguousarray(planes).view(np.uint64)
    block = len(planes) // grid
    row = np.ones(block, np.float32)
    cells = np.zeros((count, grid, grid), np.float32)
    for bit in range(count):
        pixels = (eight >> np.uint64(bit)) & _LOWEST_OF_EIGHT
        columns = pixels.reshape(grid, block, -1).sum(1).view(np.uint8)
        # A product with ones sums faster than a sum over an axis this short.
        cells[bit] = columns.reshape(grid, grid, block).astype(np.float32) @ row
    return cells


def _merge_cells(cells: Float[np.ndarray, "n f f"], grid: int) -> Float[np.ndarray, "8 g g"]:
    """The same count on a coarser grid."""
    merged = np.zeros((MASKS, grid, grid), np.float32)
    block = cells.shape[1] // grid
    merged[: len(cells)] = cells.reshape(-1, grid, block, grid, block).sum((2, 4))
    return merged


def _weigh(
    planes: UInt8[np.ndarray, "s s"], count: int, weights: Float[np.ndarray, "g s"]
) -> Float[np.ndarray, "8 g g"]:
    """Weighted means along both axes."""
    used = weights.any(0)  # bilinear looks at few of the pixels
    weights = weights[:, used]
    masks = np.zeros((MASKS, len(weights), len(weights)), np.float32)
    bits = unpack_masks(planes[np.ix_(used, used)], count).astype(np.float32)
    masks[:count] = weights @ bits @ weights.T
    return masks


@functools.lru_cache(maxsize=64)
def _area_weights(side: int, grid: int) -> Float[np.ndarray, "grid side"]:
    """How much of each cell each pixel covers, along one axis."""
    edges = np.arange(grid + 1) * side / grid
    pixels = np.arange(side)
    upper = np.minimum(edges[1:, None], pixels + 1)
    lower = np.maximum(edges[:-1, None], pixels)
    return (np.clip(upper - lower, 0, None) * grid / side).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _bilinear_weights(side: int, grid: int) -> Float[np.ndarray, "grid side"]:
    """The two pixels around each cell's centre; past the edge, the edge's."""
    place = np.clip((np.arange(grid) + 0.5) * side / grid - 0.5, 0, side - 1)
    distance = np.abs(place[:, None] - np.arange(side))
    return np.clip(1 - distance, 0, None).astype(np.float32)


def flip_landmarks(points: Float[np.ndarray, "5 2"], size: int) -> Float[np.ndarray, "5 2"]:
    """Mirrored left to right; what was the left eye is the right one now."""
    mirrored = np.stack([size - 1 - points[:, 0], points[:, 1]], -1).astype(np.float32)
    return mirrored[list(_MIRRORED_POINTS)]


def flip_labels(labels: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Mirrored left to right; what was the left brow is the right one now."""
    return _MIRRORED_LABELS[labels[:, ::-1]]


def flip_words(ids: Int[np.ndarray, "77"], left: int, right: int) -> Int[np.ndarray, "77"]:
    """Token ids with "left" and "right" exchanged."""
    return np.where(ids == left, right, np.where(ids == right, left, ids)).astype(ids.dtype)

"""The bare skull as a place to put things: points on it, shells off it, and what they hold on to.

Metres, as `data.procedural.growth`.
"""

import functools

import numpy as np
from jaxtyping import Float, Int

from data.procedural import growth
from data.procedural.head import PARTS, make_head

SHELL_ROWS, AROUND = 20, 60
"""Of a shell's grid."""
AZIMUTH = np.linspace(-np.pi, np.pi, AROUND, endpoint=False)
"""0 in front."""


@functools.cache
def _meridians() -> tuple[np.ndarray, np.ndarray]:
    """The bare skull by azimuth: its azimuths, and for each the points from neck to crown."""
    skull = growth.contours(growth.STILL)
    middle = skull[np.argmin(np.abs(skull[:, 0, 1] - 0.02))]
    azimuth = np.arctan2(middle[:, 0], middle[:, 2])
    order = np.argsort(azimuth)
    return azimuth[order], skull[:, order]


def on_skull(azimuth: np.ndarray, y: np.ndarray) -> Float[np.ndarray, "n 3"]:
    """Points at an azimuth (0 in front) and a height; below the ears straight down."""
    angles, skull = _meridians()
    columns = np.interp(azimuth, angles, np.arange(len(angles)), period=2 * np.pi)
    low = np.floor(columns).astype(int) % len(angles)
    high, part = (low + 1) % len(angles), (columns - np.floor(columns))[:, None]
    points = np.empty((len(y), 3))
    for i in range(len(y)):
        line = skull[:, low[i]] * (1 - part[i]) + skull[:, high[i]] * part[i]
        at = np.clip(y[i], 0.004, 0.1244)
        points[i] = [np.interp(at, line[:, 1], line[:, axis]) for axis in range(3)]
    points[:, 1] = y
    return points


def outwards(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Unit vectors away from the skull's middle."""
    away = points - [0.0, 0.025, -0.010]
    away[:, 1] *= 0.8
    return away / np.linalg.norm(away, axis=1, keepdims=True)


def shell(
    azimuth, end, thickness, *, lift=0.0, top=0.1243, ceiling=None
) -> Float[np.ndarray, "v 3"]:
    """From the crown down to `end` at each azimuth, raised by `thickness(t)` off the skull, and
    flattened below `ceiling`."""
    rows = np.linspace(0.02, 1, SHELL_ROWS)
    t, a = np.meshgrid(rows, azimuth, indexing="ij")
    low = np.broadcast_to(end, a.shape)
    y = top - (top - low) * (1 - np.cos(t * np.pi / 2))
    points = on_skull(a.ravel(), y.ravel())
    raised = points + outwards(points) * np.asarray(thickness(t, a)).reshape(-1, 1)
    raised[:, 1] += (lift * (1 - t) ** 2).ravel()
    if ceiling is not None:
        over = raised[:, 1] - (ceiling - 0.012)
        raised[:, 1] = np.where(over > 0, ceiling - 0.012 * np.exp(-over / 0.012), raised[:, 1])
    return raised


def grain(rows: int, columns: int) -> Float[np.ndarray, "v 2"]:
    """Texture coordinates of a grid of strands from the crown down."""
    down, around = np.meshgrid(np.linspace(0, 1, rows), np.arange(columns), indexing="ij")
    return np.stack([down, around], axis=-1).reshape(-1, 2)


def anchors(
    points: Float[np.ndarray, "v 3"], names: tuple[str, ...], least_y: float = -1
) -> Int[np.ndarray, "v"]:
    """The nearest vertices of some parts of the head that neither jaw nor expressions move."""
    from scipy.spatial import KDTree

    head = make_head()
    template = np.asarray(head.model.v_template)
    moved = np.abs(np.asarray(head.model.shapedirs[..., head.model.expression_offset :])).max(
        (1, 2)
    )
    still = (np.asarray(head.model.weights)[:, 2] < 0.02) & (moved < 2e-4)
    part = np.isin(head.part_of_vertex, [PARTS.index(name) for name in names])
    chosen = np.flatnonzero(still & part & (template[:, 1] > least_y))
    return chosen[KDTree(template[chosen]).query(points)[1]]

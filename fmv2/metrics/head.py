"""Whether the head is posed and lit as it was asked to be.

What the scorer reads off a picture is set beside what the picture was to show: the coefficients,
and the shading map that they make. The floor is the same of true pictures.
"""

import functools

import jax
import numpy as np
from jaxtyping import Array, Float, Num
from scipy.spatial.transform import Rotation

from fmv2.face.head import Head, render_head
from fmv2.face.shading import BASIS_POWERS
from fmv2.metrics.regions import change, in_unit
from fmv2.metrics.scorer import Reading


@functools.partial(jax.jit, static_argnames="size")
def shading_maps(reading: Reading, head: Head, *, size: int) -> Float[Array, "n size size 3"]:
    """The shading maps of the heads read off n pictures, [0, 1]; one after another."""

    def one(of: Reading):
        given = (of.identity, of.expression, of.pose, of.camera, of.light)
        return render_head(head, *given, size=size).shading

    return jax.lax.map(one, reading)


def shading_error(
    found: Num[np.ndarray, "n h w 3"], wanted: Num[np.ndarray, "n h w 3"], *, cell: int = 1
) -> Float[np.ndarray, " n"]:
    """Root mean square difference where either map shows a face, in [0, 1].

    A face that is elsewhere counts twice: where it is missed, and where it stands instead.

    Args:
      found: bytes, or [0, 1].
      wanted: likewise.
      cell: side in pixels of the squares whose means are compared. At 1 an edge that is a pixel off
        weighs as much as a wrong light.
    """
    found, wanted = (_means(in_unit(x), cell) for x in (found, wanted))
    either = np.maximum(found, wanted).any(axis=-1)
    return change(found, wanted, np.asarray(either))


def _means(maps: Float[np.ndarray, "n h w 3"], cell: int) -> Float[np.ndarray, "n i j 3"]:
    count, height, width, channels = maps.shape
    squares = maps.reshape(count, height // cell, cell, width // cell, cell, channels)
    return squares.mean(axis=(2, 4))


def pose_error(
    found: Float[np.ndarray, "n p"], wanted: Float[np.ndarray, "n p"]
) -> Float[np.ndarray, " n"]:
    """The angle in degrees between two rotations of the head, the shortest way round.

    Args:
      found: axis times angle in radians, in the first three numbers.
      wanted: likewise.
    """
    one, other = (Rotation.from_rotvec(np.asarray(x)[:, :3]) for x in (found, wanted))
    return np.degrees((one.inv() * other).magnitude())


def light_error(
    found: Float[np.ndarray, "n 9 3"], wanted: Float[np.ndarray, "n 9 3"]
) -> Float[np.ndarray, " n"]:
    """Root mean square error of what falls on surfaces of all directions, the wanted light's own
    root mean square being 1; 0 at best, and 1 for a light that has nothing of it.

    A brighter light on darker skin makes the same picture: each found light is first scaled to be
    as near to the wanted one as it can.
    """
    power = np.sqrt(np.asarray(BASIS_POWERS))[None, :, None]
    one, other = (np.asarray(x, np.float64) * power for x in (found, wanted))
    axes = (1, 2)
    scale = (one * other).sum(axes) / np.maximum((one * one).sum(axes), 1e-12)
    scale = np.maximum(scale, 0)  # no light is negative
    difference = scale[:, None, None] * one - other
    return np.sqrt((difference**2).sum(axes) / (other**2).sum(axes))

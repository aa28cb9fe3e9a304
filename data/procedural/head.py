"""The procedural head in FLAME's own schema.

Its shape and expression directions are how the surface of `data.procedural.growth` answers to each
named measure; so the first coefficients of `shape` are `factors.IDENTITY`, the first of
`expression` are `factors.EXPRESSION`, and the rest move nothing.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from data.procedural import growth
from data.procedural.factors import EXPRESSION, IDENTITY
from data.schema import COEFFICIENTS
from fmv2.face.flame import HeadModel
from fmv2.face.labels import NUMBER
from fmv2.face.render import Surface

SHAPES = COEFFICIENTS["shape"][0][0]
EXPRESSIONS = COEFFICIENTS["expression"][0][0]
JAW_TURN = 0.26
"""Radians that the jaw turns where `mouth_open` is 1."""

PARTS = (
    "skin",
    "ear_left",
    "ear_right",
    "eye_left",
    "eye_right",
    "lid_upper_left",
    "lid_upper_right",
    "lid_lower_left",
    "lid_lower_right",
    "mouth",
    "teeth",
)
"""Left and right are the head's own."""

_NECK, _JAW = (0.0, -0.110, -0.030), (0.0, -0.006, 0.004)


class Head(NamedTuple):
    """The model, and what is what on it."""

    model: HeadModel
    part_of_vertex: Int[np.ndarray, "v"]
    part_of_face: Int[np.ndarray, "f"]
    """Places in PARTS."""
    surface: Surface
    """The face alone, without scalp, ears and neck: what shading maps are rendered of."""


@functools.cache
@jax.ensure_compile_time_eval()  # whoever asks first may be tracing
def make_head() -> Head:
    """The one head of this world; identities and expressions are its coefficients."""
    template = _grow(growth.STILL, growth.CALM)
    directions = np.zeros((len(template), 3, SHAPES + EXPRESSIONS), np.float32)
    for i, name in enumerate(IDENTITY):
        more, less = (_grow({**growth.STILL, name: sign}, growth.CALM) for sign in (1.0, -1.0))
        directions[..., i] = (more - less) / 2
    for i, name in enumerate(EXPRESSION):
        directions[..., SHAPES + i] = _grow(growth.STILL, {**growth.CALM, name: 1.0}) - template

    faces, part_of_face = _faces()
    part_of_vertex = np.repeat(
        np.arange(len(PARTS)), [len(p) for p in _parts(growth.STILL, growth.CALM)]
    )
    weights = _weights(template, part_of_vertex)
    eyes = [growth.eye_center(growth.STILL, side) for side in (1, -1)]
    joints = np.array([(0.0, -0.200, -0.020), _NECK, _JAW, *eyes])
    model = HeadModel(
        v_template=jnp.asarray(template, jnp.float32),
        shapedirs=jnp.asarray(directions),
        posedirs=jnp.zeros((len(template), 3, 9 * 4), jnp.float32),
        J_regressor=jnp.asarray(_regressor(template, part_of_vertex, joints), jnp.float32),
        weights=jnp.asarray(weights, jnp.float32),
        faces=jnp.asarray(faces, jnp.int32),
        parents=(-1, 0, 1, 1, 1),
        expression_offset=SHAPES,
    )
    facial = _facial(template, faces, part_of_face)
    corners, barycentrics = _landmarks(template, faces[facial])
    surface = Surface(
        faces=jnp.asarray(faces[facial], jnp.int32),
        labels=jnp.full(int(facial.sum()), NUMBER["skin"], jnp.int32),
        landmark_corners=jnp.asarray(corners, jnp.int32),
        landmark_barycentrics=jnp.asarray(barycentrics, jnp.float32),
    )
    return Head(model, part_of_vertex, part_of_face, surface)


def _parts(m: growth.Measures, e: growth.Measures) -> list[Float[np.ndarray, "v 3"]]:
    """In the order of PARTS."""
    return [
        growth.skin(m, e),
        *(growth.ear(m, side) for side in (1, -1)),
        *(growth.eyeball(m, side) for side in (1, -1)),
        *(growth.lid(m, e, side, upper=True) for side in (1, -1)),
        *(growth.lid(m, e, side, upper=False) for side in (1, -1)),
        growth.mouth_inside(m, e),
        growth.teeth(m, e),
    ]


def _grow(m: growth.Measures, e: growth.Measures) -> Float[np.ndarray, "v 3"]:
    return np.concatenate(_parts(m, e))


def _faces() -> tuple[Int[np.ndarray, "f 3"], Int[np.ndarray, "f"]]:
    """All triangles, wound so that normals point outwards, and the part of each."""
    rows, columns = growth.ROWS, growth.COLUMNS
    skin = growth.grid_faces(rows, columns, closed=True)
    # Below the line between the lips, the skin's triangles take the lower copy of its vertices.
    copies = np.arange(rows * columns + len(growth.CUT))
    copies[growth.CUT] = rows * columns + np.arange(len(growth.CUT))
    cut_row = growth.CUT[0] // columns
    below = (skin // columns).min(axis=1) < cut_row
    skin[below] = copies[skin[below]]

    sphere = growth.grid_faces(*growth.SPHERE_GRID, closed=True)
    lid = growth.grid_faces(growth.LID[0][1], growth.LID[1][1], closed=False)
    teeth = growth.grid_faces(*growth.TEETH_GRID, closed=False)
    mirrored: Callable[[np.ndarray], np.ndarray] = lambda faces: faces[:, ::-1]  # noqa: E731
    pieces = [
        skin,
        mirrored(sphere),
        sphere,
        *[mirrored(sphere)] * 2,
        *[mirrored(lid)] * 2,
        *[lid] * 2,
        mirrored(sphere),
        teeth,
    ]
    sizes = [len(part) for part in _parts(growth.STILL, growth.CALM)]
    firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    faces = np.concatenate([first + piece for first, piece in zip(firsts, pieces, strict=True)])
    return faces, np.repeat(np.arange(len(PARTS)), [len(piece) for piece in pieces])


def _weights(p: np.ndarray, part: np.ndarray) -> Float[np.ndarray, "v 5"]:
    """How far root, neck, jaw and eyes move each vertex."""
    x, y, z = p.T
    step, mouth = growth.step, growth.MOUTH_Y
    beside = np.clip((x / growth.MOUTH_HALF_WIDTH) ** 2, 0, 1)
    # Away from the mouth the change from skull to jaw takes more of the cheek.
    reach = 0.010 + 0.030 * step(np.abs(x), 0.018, 0.060)
    down = np.clip((mouth + 0.004 + 0.5 * (reach - 0.010) - y) / reach, 0, 1)
    down = down * down * (3 - 2 * down)
    jaw = np.where(y > mouth, down * beside, beside * down + 1 - beside)
    line = np.isclose(y, mouth, atol=4e-4) & (z > 0.05)
    lower = np.zeros(len(p), bool)
    lower[growth.ROWS * growth.COLUMNS :][: len(growth.CUT)] = True
    jaw = np.where(line, np.where(lower, 1 - 0.65 * beside, 0.35 * beside), jaw)
    jaw = jaw * step(z, -0.010, 0.040) * step(y, -0.134, -0.110)
    name = np.array(PARTS)[part]
    jaw = np.where(name == "mouth", step(mouth + 0.0004 - y, -0.0004, 0.0012), jaw)
    jaw = np.where(np.isin(name, ("skin", "mouth")), jaw, 0)
    eyes = [np.where(name == f"eye_{side}", 1.0, 0.0) for side in ("left", "right")]
    neck = step(y, -0.195, -0.120) * (1 - jaw - sum(eyes))
    return np.stack([1 - neck - jaw - sum(eyes), neck, jaw, *eyes], axis=1)


def _regressor(p: np.ndarray, part: np.ndarray, joints: np.ndarray) -> Float[np.ndarray, "5 v"]:
    """Joints as mixtures of vertices: the eyes' of their balls, the others' of the skin's ring at
    their height, so that they follow identity."""
    regressor = np.zeros((len(joints), len(p)))
    for row, joint in enumerate(joints):
        name = {3: "eye_left", 4: "eye_right"}.get(row, "skin")
        of_part = np.flatnonzero(part == PARTS.index(name))
        near = of_part
        if name == "skin":
            near = of_part[np.argsort(np.abs(p[of_part, 1] - joint[1]))[: 4 * growth.COLUMNS]]
        # The smallest weights that hit the joint and sum to 1.
        system = np.vstack([p[near].T, np.ones(len(near))])
        regressor[row, near] = np.linalg.lstsq(system, np.append(joint, 1.0), rcond=None)[0]
    return regressor


def _facial(p: np.ndarray, faces: np.ndarray, part: np.ndarray) -> Bool[np.ndarray, "f"]:
    """The face: skin before the ears between chin and hairline, with eyes, lids and mouth."""
    centre = p[faces].mean(axis=1)
    halves = centre[: np.sum(part == PARTS.index("skin"))].reshape(2, -1, 3)
    # Both triangles of a square go together, or the edge of the face would be a saw.
    centre[: halves.shape[1] * 2] = np.tile(halves.mean(axis=0), (2, 1))
    _, y, z = centre.T
    inside = (z > 0.004 + 0.25 * np.abs(y - 0.01)) & (y > -0.1145) & (y < 0.088)
    ears = np.isin(part, [PARTS.index("ear_left"), PARTS.index("ear_right")])
    return np.where(part == PARTS.index("skin"), inside, ~ears)


def _landmarks(p: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """iBUG's 68 points, given in front view, on the foremost triangle that each falls in."""
    corners, barycentrics = np.empty((68, 3), int), np.empty((68, 3))
    triangles = p[faces]
    (ax, ay), (bx, by), (cx, cy) = (triangles[:, i, :2].T for i in range(3))
    area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
    for n, (x, y) in enumerate(_points()):
        with np.errstate(divide="ignore", invalid="ignore"):
            b = ((x - ax) * (cy - ay) - (cx - ax) * (y - ay)) / area
            c = ((bx - ax) * (y - ay) - (x - ax) * (by - ay)) / area
        bary = np.stack([1 - b - c, b, c], axis=1)
        holds = (bary >= -1e-9).all(axis=1) & (area > 1e-12)
        if not holds.any():  # off the silhouette: the nearest vertex's triangle
            distance = np.hypot(triangles[..., 0] - x, triangles[..., 1] - y)
            face, corner = np.unravel_index(np.argmin(distance), distance.shape)
            bary[face] = np.eye(3)[corner]
        else:
            depth = np.where(holds, (bary * triangles[..., 2]).sum(axis=1), -np.inf)
            face = int(np.argmax(depth))
        corners[n], barycentrics[n] = faces[face], bary[face]
    return corners, barycentrics


def _points() -> Float[np.ndarray, "68 2"]:
    """Jaw, brows, nose, eyes, outer and inner lips, each from the head's own right."""
    turn = np.linspace(-1, 1, 17)
    jaw = np.stack([0.0715 * np.sin(turn * 1.45), 0.012 - 0.122 * np.cos(turn * 1.45) ** 0.8], 1)
    s = np.linspace(-1, 1, 5)
    brow = np.stack([0.031 + 0.019 * s, 0.0485 + 0.0050 * (1 - s**2) - 0.001 * s], 1)
    right_brow, left_brow = (brow * [-1, 1])[::-1], brow
    ridge = np.stack([np.zeros(4), np.array([0.026, 0.013, 0.001, -0.0115])], 1)
    base = np.stack(
        [np.linspace(-0.0125, 0.0125, 5), [-0.0195, -0.0215, -0.0235, -0.0215, -0.0195]], 1
    )
    ex, ey = growth.EYE[:2]
    eye = np.array(
        [
            (-0.0135, 0),
            (-0.005, 0.0058),
            (0.005, 0.0058),
            (0.0135, 0),
            (0.005, -0.0050),
            (-0.005, -0.0050),
        ]
    )
    right_eye, left_eye = eye + np.array([-ex, ey]), eye + np.array([ex, ey])
    w, my = growth.MOUTH_HALF_WIDTH, growth.MOUTH_Y
    upper = np.array(
        [
            (-w, 0),
            (-0.017, 0.0060),
            (-0.0065, 0.0098),
            (0, 0.0086),
            (0.0065, 0.0098),
            (0.017, 0.0060),
            (w, 0),
        ]
    )
    lower = np.array(
        [(0.017, -0.0078), (0.0075, -0.0108), (0, -0.0114), (-0.0075, -0.0108), (-0.017, -0.0078)]
    )
    inner = np.array(
        [
            (-0.022, 0.0004),
            (-0.008, 0.0009),
            (0, 0.0009),
            (0.008, 0.0009),
            (0.022, 0.0004),
            (0.008, -0.0009),
            (0, -0.0009),
            (-0.008, -0.0009),
        ]
    )
    mouth = np.concatenate([upper, lower, inner]) + np.array([0, my])
    return np.concatenate([jaw, right_brow, left_brow, ridge, base, right_eye, left_eye, mouth])

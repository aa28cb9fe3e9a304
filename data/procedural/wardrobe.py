"""What a head wears: hair, hats, glasses, jewellery and clothes, as vertices beside the head's own.

Each item has one mesh, and a table of where its vertices lie for each class of its attribute; what
is absent is shrunk to a point, and a point draws nothing. Every vertex is anchored to one of the
head's, whose shape and skinning it follows. Metres, as `data.procedural.growth`.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from data.procedural import growth
from data.procedural.factors import ATTRIBUTES
from data.procedural.skull import (
    AROUND,
    AZIMUTH,
    SHELL_ROWS,
    anchors,
    grain,
    on_skull,
    outwards,
    shell,
)

_NOWHERE = np.array([0.0, 0.0, -0.02])


class Item(NamedTuple):
    """One mesh and its places."""

    attribute: str
    """Whose class chooses the place."""
    label: str
    places: Float[np.ndarray, "classes v 3"]
    faces: Int[np.ndarray, "f 3"]
    grain: Float[np.ndarray, "v 2"]
    """Texture coordinates, along and across strands or seams."""
    anchors: Int[np.ndarray, "v"]
    """Vertices of the head."""


@functools.cache
def make_wardrobe() -> dict[str, Item]:
    """All items by name."""
    return {
        "hair": _hair(),
        "bangs": _bangs(),
        "bun": _bun(),
        "hat": _hat(),
        "brim": _brim(),
        "rims": _glasses(),
        "lenses": _lenses(),
        "earrings": _earrings(),
        "necklace": _necklace(),
        "cloth": _cloth(),
    }


def _flipped(faces: np.ndarray) -> np.ndarray:
    return faces[:, ::-1]


def _hairline(azimuth: np.ndarray) -> np.ndarray:
    """Height of the hair's edge on the skin: forehead, temples, round the ears, nape."""
    turn = np.abs(np.degrees(azimuth))
    return np.interp(
        turn, [0, 25, 48, 62, 74, 90, 104, 125, 180], [88, 86, 72, 52, 24, 26, 0, -50, -78]
    ) / 1000.0  # fmt: skip


def _hair() -> Item:
    line = _hairline(AZIMUTH)
    turn = np.abs(np.degrees(AZIMUTH))

    def hanging(low, opens):
        """The hairline in front, `low` behind azimuth `opens`."""
        return np.interp(turn, [0, opens, opens + 16, 180], [0, 0, 1, 1]) * (low - line) + line

    def close(amount):
        return lambda t, a: 0.0022 + amount * np.clip((1 - t) * 4, 0, 1) ** 0.7

    def full(amount, wave=0.0):
        def thickness(t, a):
            in_front = np.clip(1 - np.abs(a) / 1.1, 0, 1)
            rim = 1 - in_front * np.clip((t - 0.75) * 4, 0, 1)
            return 0.003 + amount * rim * (0.75 + 0.25 * t) + wave * t * np.sin(9 * t + 5 * a)

        return thickness

    def curls(t, a):
        in_front = np.clip(1 - np.abs(a) / 1.0, 0, 1)
        rim = 1 - in_front * np.clip((t - 0.8) * 5, 0, 1)
        lumps = 0.0045 * np.sin(11 * a + 3 * np.sin(17 * t)) * np.sin(21 * t)
        return 0.004 + (0.030 + lumps) * rim

    shapes = {
        "bald": None,
        "short": shell(AZIMUTH, line, close(0.0085)),
        "bob": shell(AZIMUTH, hanging(-0.082, 66), full(0.0150)),
        "long": shell(AZIMUTH, hanging(-0.185, 68), full(0.0150, 0.0018)),
        "curly": shell(AZIMUTH, hanging(-0.055, 64), curls),
        "bun": shell(AZIMUTH, line, close(0.0065)),
    }
    places = np.stack(
        [_or_nowhere(shapes[name], shapes["short"]) for name in ATTRIBUTES["hair_style"]]
    )
    return Item(
        "hair_style",
        "hair",
        places,
        _flipped(growth.grid_faces(SHELL_ROWS, AROUND, closed=True)),
        grain(SHELL_ROWS, AROUND),
        anchors(places[1], ("skin",), least_y=-0.02),
    )


def _or_nowhere(points: np.ndarray | None, like: np.ndarray) -> np.ndarray:
    return np.broadcast_to(_NOWHERE, like.shape) if points is None else points


def _bangs() -> Item:
    azimuth = np.linspace(-0.98, 0.98, 26)
    rows = np.linspace(0, 1, 9)
    t, a = np.meshgrid(rows, azimuth, indexing="ij")
    low = 0.0575 + 0.006 * np.abs(a) + 0.0018 * np.sin(23 * a)
    y = 0.112 - (0.112 - low) * t
    points = on_skull(a.ravel(), y.ravel())
    points += outwards(points) * (0.0120 - 0.0045 * t.reshape(-1, 1))
    return Item(
        "bangs",
        "hair",
        np.stack([_or_nowhere(None, points), points]),
        _flipped(growth.grid_faces(9, 26, closed=False)),
        grain(9, 26) * [1, 2.2],
        anchors(points, ("skin",), least_y=0.0),
    )


def _bun() -> Item:
    ball = growth.SPHERE * [0.030, 0.026, 0.030] + [0, 0.136, -0.035]
    names = ATTRIBUTES["hair_style"]
    places = np.stack([_or_nowhere(ball if name == "bun" else None, ball) for name in names])
    return Item(
        "hair_style",
        "hair",
        places,
        growth.grid_faces(*growth.SPHERE_GRID, closed=True),
        grain(*growth.SPHERE_GRID) * [1, 3],
        anchors(ball, ("skin",), least_y=0.08),
    )


def _hat() -> Item:
    def rim(front, back):
        return front + (back - front) * (1 - np.cos(AZIMUTH)) / 2

    def even(amount, top=0.0):
        return lambda t, a: amount + top * (1 - t)

    def flat(t, a):  # a crown with a flat top
        return 0.0175 + 0.020 * np.exp(-(((t - 0.52) / 0.22) ** 2))

    shapes = {
        "none": None,
        "cap": shell(AZIMUTH, rim(0.066, 0.010), even(0.0175), lift=0.012, ceiling=0.151),
        "beanie": shell(
            AZIMUTH, rim(0.060, -0.010), even(0.0200, 0.004), lift=0.030, ceiling=0.168
        ),
        "brimmed": shell(AZIMUTH, rim(0.066, 0.030), flat, lift=0.034, ceiling=0.166),
    }
    places = np.stack([_or_nowhere(shapes[name], shapes["cap"]) for name in ATTRIBUTES["hat"]])
    return Item(
        "hat",
        "hat",
        places,
        _flipped(growth.grid_faces(SHELL_ROWS, AROUND, closed=True)),
        grain(SHELL_ROWS, AROUND),
        anchors(places[1], ("skin",), least_y=0.0),
    )


def _brim() -> Item:
    """A visor in front, or a ring all round; both sides of a sheet."""
    rows = 5
    t, a = np.meshgrid(np.linspace(0, 1, rows), AZIMUTH, indexing="ij")

    def sheet(front, back, reach, droop):
        y = front + (back - front) * (1 - np.cos(a)) / 2
        points = on_skull(a.ravel(), y.ravel())
        away = outwards(points) * [1, 0, 1]
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        # It begins inside the crown, whose rim stands off the skull a little higher up.
        points = points + away * ((0.0165 + reach) * t + 0.004 * (1 - t)).ravel()[:, None]
        points[:, 1] += 0.0055 - (droop * t**2).ravel()
        lower = points - [0, 0.0016, 0]
        return np.concatenate([points, lower])

    visor = np.clip(np.cos(a), 0, 1) ** 1.6 * 0.066
    shapes = {
        "none": None,
        "cap": sheet(0.066, 0.010, visor, 0.012 * np.cos(a)),
        "beanie": None,
        "brimmed": sheet(0.066, 0.030, 0.062, 0.012),
    }
    places = np.stack([_or_nowhere(shapes[name], shapes["cap"]) for name in ATTRIBUTES["hat"]])
    upper = growth.grid_faces(rows, AROUND, closed=True)
    lower = growth.grid_faces(rows, AROUND, closed=True, first=rows * AROUND)
    return Item(
        "hat",
        "hat",
        places,
        np.concatenate([_flipped(upper), lower]),
        np.tile(grain(rows, AROUND), (2, 1)),
        anchors(places[1], ("skin",), least_y=0.0),
    )


_RIM = {
    "round": (0.0235, 0.0225, 2.0),
    "square": (0.0270, 0.0195, 5.0),
    "sunglasses": (0.0285, 0.0225, 3.2),
}
_RIM_AROUND = 32


def _outline(kind: str, side: int) -> Float[np.ndarray, "n 3"]:
    """The middle line of a rim: a superellipse before the eye."""
    wide, high, power = _RIM[kind]
    turn = np.linspace(0, 2 * np.pi, _RIM_AROUND, endpoint=False)
    c, s = np.cos(turn), np.sin(turn)
    x = side * 0.0345 + wide * np.sign(c) * np.abs(c) ** (2 / power)
    y = 0.0235 + high * np.sign(s) * np.abs(s) ** (2 / power)
    return np.stack([x, y, _before_eyes(x)], axis=1)


def _before_eyes(x):
    """How far out glasses stand; they bend round the face."""
    return 0.1015 - 2.2 * x**2


def _tube(line: np.ndarray, radius: float, *, closed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and triangles of a tube of six sides along a line."""
    ahead = np.roll(line, -1, axis=0) - np.roll(line, 1, axis=0)
    if not closed:
        ahead[0], ahead[-1] = line[1] - line[0], line[-1] - line[-2]
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    up = np.where(np.abs(ahead[:, [1]]) > 0.9, [[0.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]])
    one = np.cross(ahead, up)
    one /= np.linalg.norm(one, axis=1, keepdims=True)
    two = np.cross(ahead, one)
    turn = np.linspace(0, 2 * np.pi, 6, endpoint=False)[None, :, None]
    ring = line[:, None] + radius * (np.cos(turn) * one[:, None] + np.sin(turn) * two[:, None])
    faces = growth.grid_faces(len(line), 6, closed=True)
    if closed:
        n = len(line)
        r = np.arange(6)
        last, next_ = (n - 1) * 6 + r, (n - 1) * 6 + (r + 1) % 6
        join = np.stack([last, next_, (r + 1) % 6, r], axis=1)
        faces = np.concatenate([faces, join[:, [0, 1, 2]], join[:, [0, 2, 3]]])
    return ring.reshape(-1, 3), faces


def _glasses() -> Item:
    def frame(kind):
        thick = 0.0017 if kind == "round" else 0.0022
        pieces = [_tube(_outline(kind, side), thick, closed=True) for side in (1, -1)]
        reach = 0.0345 - _RIM[kind][0]
        bridge = np.linspace(-reach, reach, 7)
        arc = np.stack(
            [bridge, 0.029 + 0.002 * np.cos(bridge / reach * np.pi / 2), 0.1015 + 0 * bridge], 1
        )
        pieces.append(_tube(arc, thick, closed=False))
        for side in (1, -1):
            start = np.array(
                [
                    side * (0.0345 + _RIM[kind][0]),
                    0.029,
                    _before_eyes(0.0345 + _RIM[kind][0]),
                ]
            )
            hinge, end = (
                np.array([side * 0.0760, 0.029, 0.070]),
                np.array([side * 0.0835, 0.022, -0.015]),
            )
            arm = np.stack([start, (start + hinge) / 2, hinge, (hinge + end) / 2, end])
            pieces.append(_tube(arm, thick, closed=False))
        return pieces

    kinds = {kind: frame(kind) for kind in _RIM}
    faces, first = [], 0
    for points, triangles in kinds["round"]:
        faces.append(first + triangles)
        first += len(points)
    vertices = {kind: np.concatenate([p for p, _ in pieces]) for kind, pieces in kinds.items()}
    like = vertices["round"]
    places = np.stack([_or_nowhere(vertices.get(name), like) for name in ATTRIBUTES["glasses"]])
    return Item(
        "glasses",
        "eye_g",
        places,
        np.concatenate(faces),
        np.zeros((len(like), 2)),
        np.repeat(anchors(np.array([[0.0, 0.030, 0.10]]), ("skin",)), len(like)),
    )


def _lenses() -> Item:
    """Dark discs; only sunglasses have them."""
    rings = np.linspace(0.02, 1, 5)
    discs = []
    for side in (1, -1):
        outline = _outline("sunglasses", side)
        middle = outline.mean(axis=0)
        disc = (middle + rings[:, None, None] * (outline - middle)).reshape(-1, 3)
        disc[:, 2] = _before_eyes(disc[:, 0])
        discs.append(disc)
    points = np.concatenate(discs)
    one = _flipped(growth.grid_faces(5, _RIM_AROUND, closed=True))
    names = ATTRIBUTES["glasses"]
    places = np.stack([_or_nowhere(points if n == "sunglasses" else None, points) for n in names])
    return Item(
        "glasses",
        "eye_g",
        places,
        np.concatenate([one, one + len(discs[0])]),
        np.tile(grain(5, _RIM_AROUND), (2, 1)),
        np.repeat(anchors(np.array([[0.0, 0.030, 0.10]]), ("skin",)), len(points)),
    )


def _earrings() -> Item:
    """A bead below each ear. Sides are the picture's: its left is the head's right."""
    beads = {
        side: growth.SPHERE * [0.0058, 0.0075, 0.0058] + [side * 0.0795, -0.0340, -0.006]
        for side in (1, -1)
    }
    gone = np.broadcast_to(_NOWHERE, beads[1].shape)
    worn = {"none": (), "both": (1, -1), "left": (-1,), "right": (1,)}
    places = np.stack(
        [
            np.concatenate([beads[side] if side in worn[name] else gone for side in (1, -1)])
            for name in ATTRIBUTES["earrings"]
        ]
    )
    one = growth.grid_faces(*growth.SPHERE_GRID, closed=True)
    return Item(
        "earrings",
        "ear_r",
        places,
        np.concatenate([one, one + len(beads[1])]),
        np.zeros((places.shape[1], 2)),
        anchors(places[1], ("ear_left", "ear_right")),
    )


def _necklace() -> Item:
    turn = np.linspace(0, 2 * np.pi, 56, endpoint=False)
    front = (1 + np.cos(turn)) / 2
    line = np.stack(
        [0.0560 * np.sin(turn), -0.130 - 0.028 * front, -0.022 + 0.0640 * np.cos(turn)], 1
    )
    points, faces = _tube(line, 0.0024, closed=True)
    gone = _or_nowhere(None, points)
    return Item(
        "necklace",
        "neck_l",
        np.stack([gone if name == "none" else points for name in ATTRIBUTES["necklace"]]),
        faces,
        np.zeros((len(points), 2)),
        anchors(points, ("skin",)),
    )


def _cloth() -> Item:
    """A collar and shoulders, cut off below the picture."""
    rows = 12
    t, a = np.meshgrid(np.linspace(0, 1, rows), AZIMUTH, indexing="ij")
    c, s = np.cos(a), np.sin(a)
    out = t**0.75
    wide, deep = 0.0585 + 0.150 * out, 0.0560 + 0.050 * out
    x = wide * np.sign(s) * np.abs(s) ** 0.85
    z = -0.026 + deep * np.sign(c) * np.abs(c) ** 0.85
    y = -0.144 - 0.026 * (1 + c) / 2 * (1 - t) - 0.012 * t - 0.115 * t**2.4
    points = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    count = len(ATTRIBUTES["cloth_color"])
    return Item(
        "cloth_color",
        "cloth",
        np.broadcast_to(points, (count, *points.shape)),
        _flipped(growth.grid_faces(rows, AROUND, closed=True)),
        grain(rows, AROUND),
        np.repeat(anchors(np.array([[0.0, -0.2, 0.03]]), ("skin",)), len(points)),
    )

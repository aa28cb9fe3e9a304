"""How the surface of a head follows from named measures.

A stack of contours from the neck to the crown, and the face's relief laid over its front; then
ears, eyes, lids and the inside of the mouth. Metres, +y up, +z out of the face, +x the head's own
left.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from scipy.interpolate import PchipInterpolator

from data.procedural.factors import EXPRESSION, IDENTITY

Measures = Mapping[str, float]
"""Identity in standard deviations by its names, or expression from 0 to 1 by its own."""

STILL: Measures = dict.fromkeys(IDENTITY, 0.0)
"""The mean person."""
CALM: Measures = dict.fromkeys(EXPRESSION, 0.0)
"""A face at rest."""

COLUMNS, ROWS = 92, 64
"""Of the head's grid: around, and from neck to crown."""

EYE = np.array([0.0320, 0.026, 0.0690])
EYE_RADIUS = 0.0140
MOUTH_Y, MOUTH_HALF_WIDTH = -0.052, 0.0285

# Contours: height in front and behind, half width, and how far front and back reach.
_PROFILE = np.array(
    [
        [-0.215, -0.200, 0.0600, 0.0330, -0.0780],
        [-0.170, -0.165, 0.0500, 0.0300, -0.0700],
        [-0.128, -0.125, 0.0475, 0.0330, -0.0680],
        [-0.1120, -0.100, 0.0475, 0.0560, -0.0690],
        [-0.1080, -0.085, 0.0470, 0.0770, -0.0710],
        [-0.1010, -0.072, 0.0490, 0.0860, -0.0740],
        [-0.0850, -0.056, 0.0545, 0.0890, -0.0800],
        [-0.0650, -0.040, 0.0600, 0.0885, -0.0870],
        [-0.0400, -0.022, 0.0655, 0.0885, -0.0940],
        [-0.0100, 0.000, 0.0700, 0.0880, -0.1000],
        [0.0200, 0.024, 0.0730, 0.0875, -0.1030],
        [0.0450, 0.048, 0.0745, 0.0890, -0.1030],
        [0.0700, 0.072, 0.0735, 0.0850, -0.0980],
        [0.0900, 0.092, 0.0680, 0.0750, -0.0880],
        [0.1050, 0.107, 0.0580, 0.0610, -0.0730],
        [0.1160, 0.117, 0.0430, 0.0430, -0.0520],
        [0.1225, 0.123, 0.0230, 0.0210, -0.0280],
        [0.1245, 0.1245, 0.0004, -0.0010, -0.0035],
    ]
)


def bump(x, y, at, size):
    """A Gaussian hill of height 1."""
    return np.exp(-(((x - at[0]) / size[0]) ** 2) - ((y - at[1]) / size[1]) ** 2)


def both(x, y, at, size):
    """The same on either side of the face."""
    return bump(x, y, at, size) + bump(x, y, (-at[0], at[1]), size)


def step(x, low, high):
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def contours(m: Measures) -> Float[np.ndarray, "rows columns 3"]:
    """The bare stack, without relief."""
    heights = np.linspace(0, len(_PROFILE) - 1, 400)
    keys = np.arange(len(_PROFILE))
    fine = PchipInterpolator(keys, _PROFILE)(heights)
    # Rows lie denser where the face is.
    density = 1 + 2.6 * np.exp(-(((fine[:, 0] + 0.03) / 0.045) ** 2))
    along = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    at = np.interp(np.linspace(0, along[-1], ROWS), along, heights)
    front_y, back_y, width, front, back = (np.interp(at, heights, c) for c in fine.T)
    mouth_row = int(np.argmin(np.abs(front_y - MOUTH_Y)))
    front_y = front_y + (MOUTH_Y - front_y[mouth_row]) * np.exp(
        -(((np.arange(ROWS) - mouth_row) / 3.0) ** 2)
    )

    # Columns lie denser in front; column 0 is the back.
    turn = np.linspace(-np.pi, np.pi, COLUMNS, endpoint=False)
    azimuth = turn - 0.55 * np.sin(turn)
    sine, cosine = np.sin(azimuth), np.cos(azimuth)
    flat = np.sign(cosine) * np.abs(cosine) ** 0.86
    wide = np.sign(sine) * np.abs(sine) ** 0.86
    facing = (1 + cosine) / 2
    y = front_y[:, None] * facing + back_y[:, None] * (1 - facing)
    middle = (front + back)[:, None] / 2 - 0.006
    z = middle + np.where(cosine > 0, front[:, None] - middle, middle - back[:, None]) * flat
    x = width[:, None] * wide

    jaw = step(-y, 0.02, 0.085) * step(y, -0.125, -0.10)
    x = x * (1 + 0.075 * m["jaw_width"] * jaw)
    x = x * (1 + 0.030 * m["face_width"] * step(y, -0.13, -0.08))
    x = x * (1 + 0.040 * m["cheekbone_width"] * np.exp(-(((y + 0.005) / 0.03) ** 2)))
    neck = step(-y, 0.105, 0.135)
    x, z = x * (1 + 0.07 * m["neck_width"] * neck), z * (1 + 0.04 * m["neck_width"] * neck)
    y = y + 0.0035 * m["face_length"] * step(y, -0.10, 0.10) * 2 - 0.0035 * m["face_length"]
    y = y + 0.0045 * m["forehead_height"] * step(y, 0.045, 0.11)
    return np.stack([x, y, z], axis=-1)


def _relief(p: np.ndarray, m: Measures, e: Measures) -> np.ndarray:
    """The face laid over the stack's front, and what expressions do to it."""
    x, y, z = np.moveaxis(p, -1, 0)
    front = step(z, 0.015, 0.05)
    spread = 0.0016 * m["eye_spacing"]
    eye = (EYE[0] + spread, EYE[1])
    # Sockets, brow ridge, forehead.
    dz = -(0.0175 + 0.0016 * m["eye_depth"]) * both(
        x, y, (eye[0] + 0.001, eye[1]), (0.0180, 0.0125)
    )
    dz += -0.004 * both(x, y, (0.018, 0.024), (0.007, 0.014))
    dz += (0.0045 + 0.0016 * m["brow_ridge"]) * both(x, y, (0.030, 0.0475), (0.021, 0.0095))
    dz += 0.0020 * m["forehead_slope"] * -step(y, 0.05, 0.10)
    # Cheeks.
    dz += (0.0045 + 0.0022 * m["cheek_fullness"]) * both(x, y, (0.040, -0.022), (0.020, 0.022))
    dz += 0.0030 * both(x, y, (0.048, 0.004), (0.016, 0.010))
    # The nose: ridge, tip, wings, hollow beside it, and the base below.
    length = 0.0024 * m["nose_length"]
    tip_y = -0.0125 - length
    wide = 1 + 0.13 * m["nose_width"]
    ridge = step(y, tip_y - 0.004, tip_y + 0.004) * step(-y, -0.042, -0.022)
    slope = np.clip((0.034 - y) / (0.034 - tip_y), 0, 1)
    height = (0.0055 + 0.0016 * m["nose_bridge"]) + 0.0155 * slope**1.25
    dz += ridge * height * np.exp(-((x / (0.0090 * wide * (0.85 + 0.35 * slope))) ** 2))
    turn = 0.0015 * m["nose_tip_turn"]
    dz += 0.0085 * bump(x, y, (0, tip_y + 0.001 + turn), (0.0092 * wide, 0.0085))
    dz += 0.0082 * both(x, y, (0.0118 * wide, tip_y - 0.0035), (0.0054, 0.0060))
    dz += -0.0022 * both(x, y, (0.0205 * wide, tip_y - 0.004), (0.0050, 0.0100))
    # Mouth: the muzzle, two lips, the groove above, the hollow below.
    mouth = 1 + 0.075 * m["mouth_width"]
    upper, lower = 1 + 0.22 * m["upper_lip_thickness"], 1 + 0.22 * m["lower_lip_thickness"]
    press = 1 - 0.75 * e["lip_press"]
    dz += 0.0055 * bump(x, y, (0, -0.050), (0.030 * mouth, 0.024))
    lip = np.exp(-((x / (0.0215 * mouth)) ** 4))
    dz += 0.0040 * press * lip * np.exp(-(((y - MOUTH_Y - 0.0048 * upper) / (0.0042 * upper)) ** 2))
    dz += 0.0048 * press * lip * np.exp(-(((y - MOUTH_Y + 0.0056 * lower) / (0.0052 * lower)) ** 2))
    dz += -0.0030 * lip * np.exp(-(((y - MOUTH_Y) / 0.0018) ** 2))
    dz += -0.0014 * bump(x, y, (0, -0.034), (0.0034, 0.0070))
    dz += -0.0036 * bump(x, y, (0, -0.0715), (0.022, 0.0060))
    # Chin.
    chin_y = -0.0905 - 0.0030 * m["chin_length"]
    dz += (0.0062 + 0.0028 * m["chin_protrusion"]) * bump(x, y, (0, chin_y), (0.0170, 0.0125))
    dy = -0.0042 * m["chin_length"] * step(-y, 0.060, 0.100) * step(y, -0.135, -0.112)
    dx = 0.0 * x

    # Measures that slide the skin rather than raise it.
    region = np.exp(-(((y - MOUTH_Y) / 0.016) ** 2)) * front
    dx += 0.075 * m["mouth_width"] * x * np.exp(-((x / 0.036) ** 4)) * region
    above = np.exp(-(((y - MOUTH_Y - 0.006) / 0.0070) ** 2))
    below = np.exp(-(((y - MOUTH_Y + 0.007) / 0.0080) ** 2))
    near = np.exp(-((x / 0.028) ** 4)) * front
    dy += 0.0013 * m["upper_lip_thickness"] * above * near * (y > MOUTH_Y)
    dy += -0.0015 * m["lower_lip_thickness"] * below * near * (y < MOUTH_Y)
    dy += (
        -0.0045
        * e["lip_press"]
        * near
        * (above * (y > MOUTH_Y + 1e-5) - below * (y < MOUTH_Y - 1e-5))
        * np.clip(np.abs(y - MOUTH_Y) / 0.004, 0, 1)
    )
    dy += -length * bump(x, y, (0, -0.012), (0.020, 0.020)) * 0.8
    brow = both(x, y, (0.030, 0.0500), (0.026, 0.0130)) * front
    side = np.sign(x)
    at_eye = both(x, y, eye, (0.022, 0.016)) * front
    dx += spread * side * both(x, y, (EYE[0], 0.034), (0.024, 0.026)) * front
    dy += 0.10 * m["eye_size"] * (y - EYE[1]) * at_eye
    dy += 0.055 * m["eye_tilt"] * (np.abs(x) - EYE[0]) * at_eye

    # Expressions.
    corner = both(x, y, (MOUTH_HALF_WIDTH, MOUTH_Y), (0.0150, 0.0130)) * front
    cheek = both(x, y, (0.040, -0.020), (0.020, 0.018)) * front
    smile, frown = e["smile"], e["mouth_frown"]
    dx += 0.0080 * smile * side * corner
    dy += (
        0.0105 * smile * corner - 0.0020 * smile * bump(x, y, (0, MOUTH_Y), (0.012, 0.012)) * front
    )
    dy += 0.0050 * smile * cheek
    dz += 0.0050 * smile * cheek - 0.0045 * smile * corner
    dy += (
        -0.0100 * frown * corner + 0.0030 * frown * bump(x, y, (0, MOUTH_Y), (0.012, 0.010)) * front
    )
    dz += -0.0020 * frown * corner
    pucker = np.exp(-((x / 0.032) ** 4)) * np.exp(-(((y - MOUTH_Y) / 0.016) ** 2)) * front
    dx += -0.36 * e["pout"] * x * pucker
    dz += 0.0095 * e["pout"] * bump(x, y, (0, MOUTH_Y), (0.020, 0.014)) * front
    dy += 0.35 * e["pout"] * (y - MOUTH_Y) * pucker
    inner = both(x, y, (0.013, 0.050), (0.012, 0.013)) * front
    dy += 0.0115 * e["brow_raise"] * brow + 0.0030 * e["brow_raise"] * bump(
        x, y, (0, 0.07), (0.04, 0.02)
    )
    dy += 0.0105 * e["inner_brow_raise"] * inner - 0.0025 * e["inner_brow_raise"] * both(
        x, y, (0.043, 0.050), (0.012, 0.012)
    )
    dy += -0.0095 * e["brow_furrow"] * inner - 0.0030 * e["brow_furrow"] * brow
    dx += -0.0050 * e["brow_furrow"] * side * inner
    dz += 0.0022 * e["brow_furrow"] * inner
    wings = both(x, y, (0.0130, tip_y - 0.002), (0.0090, 0.0100)) * front
    dy += 0.0042 * e["nose_wrinkle"] * (wings + bump(x, y, (0, -0.034), (0.020, 0.010)) * front)
    dz += 0.0022 * e["nose_wrinkle"] * both(x, y, (0.010, 0.010), (0.007, 0.010)) * front
    dy += 0.0035 * e["squint"] * both(x, y, (EYE[0], 0.008), (0.018, 0.008)) * front
    dz += 0.0028 * e["squint"] * both(x, y, (EYE[0], 0.008), (0.018, 0.008)) * front
    return np.stack([x + dx, y + dy, z + front * dz], axis=-1)


def skin(m: Measures, e: Measures) -> Float[np.ndarray, "v 3"]:
    """The head's own grid, row by row from the neck up, then the lower lip's copy of the cut."""
    grid = _relief(contours(m), m, e).reshape(-1, 3)
    return np.concatenate([grid, grid[CUT]])


def ear(m: Measures, side: int) -> Float[np.ndarray, "v 3"]:
    """A flat shell with a rim and a hollow; side 1 is the head's left."""
    p = SPHERE.copy()
    out, up, back = p.T
    hollow = np.exp(-((up / 0.55) ** 2) - ((back / 0.50) ** 2)) * (out > 0)
    rim = np.exp(-(((np.hypot(up, back) - 0.85) / 0.16) ** 2)) * (out > 0)
    size = 1 + 0.085 * m["ear_size"]
    x = 0.0048 * out - 0.0042 * hollow + 0.0030 * rim
    y = 0.0310 * size * up * (1 - 0.10 * back)
    z = -0.0170 * size * back * (1 + 0.22 * up)
    turn = 0.42 + 0.13 * m["ear_flare"]
    x, z = x * np.cos(turn) - z * np.sin(turn), x * np.sin(turn) + z * np.cos(turn)
    width = 1 + 0.030 * m["face_width"]
    return np.stack([side * (0.0765 * width + x), 0.004 + y, -0.012 + z], axis=-1)


def eye_center(m: Measures, side: int) -> Float[np.ndarray, "3"]:
    """Side 1 is the head's left."""
    out, deep = EYE[0] + 0.0016 * m["eye_spacing"], EYE[2] - 0.0012 * m["eye_depth"]
    return np.array([side * out, EYE[1], deep])


def eye_radius(m: Measures) -> float:
    """In metres."""
    return EYE_RADIUS * (1 + 0.045 * m["eye_size"])


def eyeball(m: Measures, side: int) -> Float[np.ndarray, "v 3"]:
    """A ball whose pole is the pupil."""
    up, right, out = SPHERE[:, 2], SPHERE[:, 0], SPHERE[:, 1]
    return eye_center(m, side) + eye_radius(m) * np.stack([right, up, out], axis=-1)


def lid(m: Measures, e: Measures, side: int, upper: bool) -> Float[np.ndarray, "v 3"]:
    """A patch of a sphere around the eyeball, from its edge to where it sinks into the skin."""
    s, t = (a.ravel() for a in np.meshgrid(*(np.linspace(a, 1, n) for a, n in LID), indexing="ij"))
    arch = np.clip(1 - s**2, 0, 1)
    blink = e["blink_left"] if side > 0 else e["blink_right"]
    if upper:
        opened = 0.50 * arch**0.75 + 0.24 * e["eyes_wide"] * arch - 0.16 * e["squint"] * arch
        edge, root = opened - blink * (0.32 * arch + 0.50 * arch**0.75), 1.30
    else:
        edge, root = -0.40 * arch + 0.20 * e["squint"] * arch, -1.25
        edge = edge + blink * 0.12 * arch
    # The outer corner lies a little higher than the inner one.
    tilt = (0.05 + 0.055 * m["eye_tilt"]) * s * side
    height = edge + (root - edge) * t + tilt * (1 - t)
    turn = 1.12 * s
    thick = 1.095 + 0.045 * np.exp(-((t / 0.18) ** 2)) * upper
    point = np.stack(
        [np.sin(turn) * np.cos(height), np.sin(height), np.cos(turn) * np.cos(height)], axis=-1
    )
    return eye_center(m, side) + eye_radius(m) * thick[:, None] * point


def mouth_inside(m: Measures, e: Measures) -> Float[np.ndarray, "v 3"]:
    """A dark bag behind the lips, its upper and lower half, flat while the mouth is shut."""
    right, up, out = SPHERE[:, 0], SPHERE[:, 2], SPHERE[:, 1]
    width = 0.0235 * (1 + 0.075 * m["mouth_width"]) * (1 - 0.25 * e["pout"])
    wide = width + 0.004 * e["smile"]
    return np.stack([wide * right, MOUTH_Y + 0.0030 * up, 0.0655 + 0.0150 * out], axis=-1)


def teeth(m: Measures, e: Measures) -> Float[np.ndarray, "v 3"]:
    """A curved strip behind the upper lip."""
    s, t = (
        a.ravel() for a in np.meshgrid(np.linspace(-1, 1, 12), np.linspace(0, 1, 3), indexing="ij")
    )
    x = 0.0190 * (1 + 0.075 * m["mouth_width"]) * s
    return np.stack([x, MOUTH_Y + 0.004 - 0.0072 * t, 0.0862 - 0.011 * s**2], axis=-1)


def grid_faces(rows: int, columns: int, *, closed: bool, first: int = 0) -> Int[np.ndarray, "f 3"]:
    """Triangles of a grid of vertices, row by row; `closed` joins the last column to the first."""
    r, c = np.meshgrid(
        np.arange(rows - 1), np.arange(columns if closed else columns - 1), indexing="ij"
    )
    a, b = r * columns + c, r * columns + (c + 1) % columns
    quads = np.stack([a, b, b + columns, a + columns], axis=-1).reshape(-1, 4)
    return first + np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def _sphere(rows: int, columns: int) -> Float[np.ndarray, "v 3"]:
    """Unit vectors in rows from the pole at +y to the one at -y."""
    polar = np.linspace(1e-3, np.pi - 1e-3, rows)[:, None]
    turn = np.linspace(0, 2 * np.pi, columns, endpoint=False)[None]
    y = np.broadcast_to(np.cos(polar), (rows, columns))
    return np.stack([np.sin(polar) * np.cos(turn), y, np.sin(polar) * np.sin(turn)], -1).reshape(
        -1, 3
    )


SPHERE_GRID = (13, 20)
SPHERE = _sphere(*SPHERE_GRID)
LID = ((-1, 15), (0, 7))
TEETH_GRID = (12, 3)


def _cut() -> Int[np.ndarray, "c"]:
    """Vertices of the line between the lips, corners left out."""
    grid = contours(STILL)
    front = grid[..., 2] > 0
    row = int(np.argmin(np.where(front, np.abs(grid[..., 1] - MOUTH_Y), 1).min(axis=1)))
    columns = np.flatnonzero((np.abs(grid[row, :, 0]) < MOUTH_HALF_WIDTH) & front[row])
    return row * COLUMNS + columns


CUT = _cut()
"""The skin's vertices along the line between the lips; their lower copies follow the grid."""

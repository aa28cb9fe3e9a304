"""What the surfaces of a picture look like: colours and textures, laid on in the head's rest pose.

A texture is a function of where a point of the mean head lies, in metres, so that it follows every
identity and expression. Colours are sRGB from 0 to 1 until `linear`.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from data.procedural import growth
from data.procedural.factors import CLASSES, EXPRESSION, IDENTITY, Factors
from data.procedural.scene import MATERIAL, MATERIALS

_COLORS = {
    "skin_tone": {
        "pale": "f3dccd", "fair": "e8bf9f", "tan": "c99567", "brown": "96603c", "dark": "5d3a26",
    },
    "eye_color": {
        "brown": "5a3417", "blue": "4d86c4", "green": "4f8a4d", "grey": "8a959c", "amber": "b9782a",
    },
    "hair_color": {
        "black": "1c1816", "brown": "553522", "blond": "d2ac62", "red": "a4431c", "grey": "8c8c8e",
        "white": "e6e4df", "blue": "2c56c0", "pink": "ea76ac", "green": "379a4e",
    },
    "paint": {
        "black": "202124", "white": "eeeeec", "red": "c8201f", "orange": "ee7d1a",
        "yellow": "f2cb27", "green": "2c8b3b", "blue": "2450b8", "purple": "7433a6",
        "pink": "f08cb8", "brown": "6d4527",
    },
    "glasses_color": {
        "black": "17171a", "brown": "5e3a1e", "red": "c0201f", "blue": "2350b4", "gold": "d1a63c",
    },
    "lip_color": {
        "natural": "b8685c", "red": "b3121f", "pink": "ea6d9c", "purple": "72297c",
        "brown": "6b3424",
    },
    "metal": {
        "none": "000000", "gold": "dbab38", "silver": "c9cdd3", "red": "c8202a", "blue": "2458c4",
    },
    "background": {
        "grey": "8f9194", "white": "e9e9e7", "black": "222326", "blue": "4d79ae",
        "green": "5e8f5c", "red": "a84a45", "yellow": "d9be63", "brown": "866549",
    },
}  # fmt: skip
_KIND = {
    "hat_color": "paint",
    "cloth_color": "paint",
    "earring_color": "metal",
    "necklace": "metal",
}

# Canonical points of the lips' outline: distance from the middle, and how far above and below.
_LIP_ACROSS = np.array([0.0, 0.0065, 0.0170, 0.0265])
_LIP_ABOVE = np.array([0.0084, 0.0096, 0.0058, 0.0004])
_LIP_BELOW = np.array([0.0112, 0.0106, 0.0074, 0.0004])

MARKS = (
    "l_brow",
    "r_brow",
    "nose",
    "u_lip",
    "l_lip",
    "beard",
)
"""Regions of the skin that only a texture tells; where two overlap, the later one is on top."""


def color(factors: Factors, name: str) -> Float[Array, "1 1 3"]:
    """The sRGB colour of a class by its attribute's name."""
    return jnp.asarray(table(name))[factors.classes[list(CLASSES).index(name)]][None, None]


def _each(*channels: float) -> Float[Array, "1 1 c"]:
    """A value for each channel, the same at every pixel."""
    return jnp.array(channels)[None, None]


@functools.cache
def table(name: str) -> np.ndarray:
    """The sRGB colours of an attribute's classes, (classes, 3)."""
    known = _COLORS[_KIND.get(name, name)]
    rows = [bytes.fromhex(known[label]) for label in CLASSES[name]]
    return np.array([list(row) for row in rows], np.float32) / 255


def linear(srgb: Float[Array, "... c"]) -> Float[Array, "... c"]:
    """Light from sRGB, by its plain power."""
    return jnp.maximum(srgb, 1e-6) ** 2.2


def displayed(light: Float[Array, "... c"]) -> Float[Array, "... c"]:
    """sRGB from light; what is brighter than white runs into it softly."""
    soft = jnp.where(light > 0.8, 0.8 + 0.2 * jnp.tanh((light - 0.8) / 0.4), light)
    return jnp.maximum(soft, 1e-6) ** (1 / 2.2)


def step(x, low, high):
    """0 below `low`, 1 above `high`, smooth between."""
    t = jnp.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def is_class(factors: Factors, attribute: str, *labels: str) -> Bool[Array, ""]:
    """Whether the attribute is one of some classes."""
    chosen = factors.classes[list(CLASSES).index(attribute)]
    return jnp.isin(chosen, jnp.array([CLASSES[attribute].index(label) for label in labels]))


def waves(
    point: Float[Array, "h w c"], frequency: float, seed: Array, count: int = 5
) -> Float[Array, "h w"]:
    """A smooth pattern about 0, of unit variance: sines in directions that the seed draws."""
    hashed = jnp.uint32(seed) + jnp.arange(count * 8, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        hashed = (hashed ^ (hashed >> shift)) * jnp.uint32(factor)
    uniform = ((hashed ^ (hashed >> 16)) >> 8).astype(jnp.float32) / 2**24
    uniform = uniform.reshape(count, 8)
    directions, phases = (uniform[:, : point.shape[-1]] - 0.5) * 4, 2 * np.pi * uniform[:, 7]
    parts, total = jnp.moveaxis(point, -1, 0), jnp.zeros(point.shape[:2])
    for direction, phase in zip(directions, phases, strict=True):
        along = sum(part * weight for part, weight in zip(parts, direction, strict=True))
        total += _sine(frequency * along + phase)
    return total * (2 / count) ** 0.5


def _sine(x: Float[Array, "h w"]) -> Float[Array, "h w"]:
    """sin, to a few millionths, by its series: on a CPU XLA calls a sine for each single number."""
    turns = x / (2 * np.pi)
    turns -= jnp.round(turns)
    quarter = 2 * jnp.clip(turns, -0.25, 0.25) - turns  # what comes after is what came before
    angle = 2 * np.pi * quarter
    series = 1.0
    for n in (5, 4, 3, 2, 1):
        series = 1 - angle**2 / (2 * n * (2 * n + 1)) * series
    return angle * series


def marks(rest: Float[Array, "h w 3"], factors: Factors) -> Float[Array, "marks h w"]:
    """How much each of MARKS covers each point of the skin, 0 to 1."""
    x, y, z = jnp.moveaxis(rest, -1, 0)
    front = z > 0.02
    away = jnp.abs(x)
    # Brows: an arch that thins towards the temple.
    along = (away - 0.031) / 0.0195
    thickness = factors.identity[IDENTITY.index("brow_thickness")]
    middle = 0.0483 + 0.0050 * (1 - along**2) - 0.0012 * along
    thick = 0.0032 * (1 + 0.28 * thickness) * (1.15 - 0.55 * step(along, -0.3, 1.0))
    brow = step(1.0 - jnp.abs(along), 0.0, 0.10) * step(
        thick - jnp.abs(y - middle), -0.0005, 0.0007
    )
    # Nose: from its root, widening to its wings.
    down = jnp.clip((0.030 - y) / 0.052, 0, 1)
    nose = (away < 0.0065 + 0.0125 * down**1.6) & (y > -0.0245) & (y < 0.030)
    # Lips.
    dy = y - growth.MOUTH_Y
    lip_x = step(_LIP_ACROSS[-1] - away, -0.0006, 0.0012)
    above = jnp.interp(away, _LIP_ACROSS, _LIP_ABOVE)
    below = jnp.interp(away, _LIP_ACROSS, _LIP_BELOW)
    upper = lip_x * step(above - dy, -0.0005, 0.0007) * (dy >= 0)
    lower = lip_x * step(below + dy, -0.0005, 0.0007) * (dy < 0)
    covered = [brow * (x > 0), brow * (x < 0), nose, upper, lower]
    beard = _beard(away, y, z, factors) * (1 - jnp.maximum(upper, lower))
    return jnp.stack([*(jnp.where(front, part, 0.0) for part in covered), beard])


def _beard(away, y, z, factors):
    mouth = growth.MOUTH_Y
    cheek = jnp.interp(
        away,
        jnp.array([0.0, 0.014, 0.028, 0.040, 0.055, 0.066, 0.074]),
        jnp.array([-0.0290, -0.0300, -0.0390, -0.0420, -0.0330, -0.0120, 0.0080]),
    )
    under = jnp.interp(away, jnp.array([0.0, 0.03, 0.07]), jnp.array([-0.1120, -0.1080, -0.0800]))
    full = step(cheek - y, 0.0, 0.006) * step(y - under, 0.0, 0.005) * step(z, 0.000, 0.012)
    droop = 0.0009 * (away / 0.01) ** 2
    moustache = step(0.0300 - away, 0.0, 0.006) * step(
        0.0062 - jnp.abs(y - (mouth + 0.0145) + droop), -0.0012, 0.0020
    )
    moustache = moustache * (0.55 + 0.45 * step(away, 0.0005, 0.003))
    chin = step(0.0235 - away - 0.10 * jnp.clip(-0.085 - y, 0, 1), 0.0, 0.005)
    goatee = chin * step(mouth - 0.0160 - y, 0.0, 0.003) * step(y + 0.1130, 0.0, 0.006)
    ring = step(0.0045 - jnp.abs(away - 0.0300), -0.002, 0.003) * step(mouth + 0.010 - y, 0, 0.004)
    ring = ring * step(y + 0.078, 0.0, 0.006)
    goatee = jnp.maximum(jnp.maximum(goatee, moustache), ring * step(z, 0.03, 0.05))
    kinds = jnp.stack([jnp.zeros_like(y), 0.55 * full, moustache, goatee, full])
    return kinds[factors.classes[list(CLASSES).index("beard")]]


def paint(
    material: Int[Array, "h w"], rest: Float[Array, "h w 3"], factors: Factors
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"], Float[Array, "marks h w"]]:
    """Albedo in sRGB, how much the surface shines, and what MARKS cover of the skin.

    Args:
      material: of each pixel, a place in `scene.MATERIALS`; -1 where nothing is.
      rest: texture coordinates, see `scene.Scene.rest`.
    """
    covered = marks(rest, factors)
    painted = {
        "skin": _skin(rest, covered, factors),
        "ear": color(factors, "skin_tone") * _each(1.0, 0.93, 0.91),
        "lid": _lid(rest, factors),
        "eye": _eye(rest, factors),
        "mouth": _each(0.24, 0.06, 0.06),
        "teeth": _each(0.90, 0.88, 0.83),
        "hair": _hair(rest, factors),
        "hat": _cloth(rest, color(factors, "hat_color"), factors, 46.0),
        "rims": color(factors, "glasses_color"),
        "lenses": _each(0.06, 0.06, 0.08),
        "earrings": color(factors, "earring_color"),
        "necklace": color(factors, "necklace"),
        "cloth": _cloth(rest, color(factors, "cloth_color"), factors, 30.0),
    }
    albedo = jnp.zeros_like(rest)
    shine = jnp.zeros(material.shape)
    for name in MATERIALS:
        kind = _LIKE.get(name, name.split("_")[0])
        here = material == MATERIAL[name]
        albedo = jnp.where(here[..., None], painted[kind], albedo)
        shine = jnp.where(here, _SHINE.get(kind, 0.0), shine)
    on_skin = material == MATERIAL["skin"]
    covered = jnp.where(on_skin[None], covered, 0)
    shine += 0.12 * jnp.maximum(covered[3], covered[4])
    return albedo, shine, covered


_LIKE = {"bangs": "hair", "bun": "hair", "brim": "hat"}
_SHINE = {
    "skin": 0.07, "ear": 0.05, "lid": 0.06, "eye": 0.55, "teeth": 0.25, "hair": 0.10, "rims": 0.45,
    "lenses": 0.31, "earrings": 0.90, "necklace": 0.90,
}  # fmt: skip


def _skin(rest, covered, factors):
    x, y, z = jnp.moveaxis(rest, -1, 0)
    away, tone = jnp.abs(x), color(factors, "skin_tone")

    def near(at_x, at_y, wide, high):
        return jnp.exp(-(((away - at_x) / wide) ** 2) - ((y - at_y) / high) ** 2) * (z > 0.02)

    seed = factors.texture_seed
    blotches = 0.013 * waves(rest, 90.0, seed) + 0.007 * waves(rest, 420.0, seed + 1)
    skin = jnp.clip(tone * (1 + blotches[..., None]), 0, 1)
    blush = 0.55 * near(0.043, -0.015, 0.020, 0.016) + 0.5 * near(0.0, -0.014, 0.011, 0.010)
    blush = blush + 0.25 * near(0.0, -0.092, 0.016, 0.010)
    skin = _mix(skin, skin * _each(1.02, 0.80, 0.78), blush)
    hollows = 0.30 * near(growth.EYE[0], 0.0265, 0.0175, 0.0115)  # sockets hold less light
    hollows += 0.55 * near(0.0068, -0.0222, 0.0036, 0.0022)  # nostrils
    hollows += 0.22 * near(0.0225, -0.0215, 0.0040, 0.0090)
    hollows += 0.38 * step(-y, 0.108, 0.124) * step(y, -0.20, -0.13) * step(z, -0.055, 0.0)
    skin = skin * (1 - hollows[..., None])
    shaded = is_class(factors, "hat", "cap", "brimmed") * step(y, 0.030, 0.066)
    haired = ~is_class(factors, "hair_style", "bald")
    skin = skin * (1 - 0.40 * shaded - 0.22 * haired * step(y, 0.066, 0.088))[..., None]
    # What hair throws on skin where it begins, and a scalp shows through short stubble.
    hair = _facial_hair_color(factors)
    strands = 0.5 + 0.5 * jnp.tanh(1.6 * waves(rest * _each(1.0, 0.35, 0.6), 2600.0, seed + 2))
    brow = jnp.maximum(covered[0], covered[1]) * (0.66 + 0.34 * strands)
    skin = _mix(skin, hair, 0.92 * brow)
    lips = color(factors, "lip_color")
    natural = is_class(factors, "lip_color", "natural")
    lips = jnp.where(natural, 0.55 * lips + 0.45 * tone * _each(0.95, 0.62, 0.60), lips)
    lips = lips * (1 + 0.05 * waves(rest * _each(1.0, 0.1, 0.1), 1500.0, seed + 3))[..., None]
    both = jnp.maximum(covered[3], covered[4])
    skin = _mix(skin, lips * (1 - 0.16 * covered[3])[..., None], 0.94 * both)
    seam = jnp.exp(-(((y - growth.MOUTH_Y) / 0.0011) ** 2)) * (away < 0.0275) * (z > 0.05)
    skin = skin * (1 - 0.60 * seam)[..., None]
    return _mix(
        skin, hair * (0.75 + 0.5 * strands)[..., None], covered[5] * (0.60 + 0.40 * strands)
    )


def _facial_hair_color(factors):
    """Brows and beard: the hair's, but nobody dyes them."""
    names = CLASSES["hair_color"]
    natural = {"white": "c8c5be", "blue": "3a281d", "pink": "3a281d", "green": "3a281d"}
    known = table("hair_color").copy()
    for name, hexadecimal in natural.items():
        known[names.index(name)] = np.array(list(bytes.fromhex(hexadecimal))) / 255
    return 0.82 * jnp.asarray(known)[factors.classes[list(CLASSES).index("hair_color")]][None, None]


def _lid(rest, factors):
    side = jnp.sign(rest[..., 0])
    out = rest - _eye_center(side)
    tone = color(factors, "skin_tone") * _each(0.95, 0.87, 0.85)
    # The edge of the upper lid, where lashes are, is the lid's lowest and thickest part.
    arch = jnp.clip(1 - (jnp.arctan2(out[..., 0] * side, out[..., 2]) / 1.12) ** 2, 0, 1)
    edge = jnp.where(out[..., 1] > -0.001, 0.50 * arch**0.75, -0.40 * arch)
    height = jnp.arctan2(out[..., 1], jnp.hypot(out[..., 0], out[..., 2]))
    from_edge = jnp.abs(height - edge)
    lash = (1 - step(from_edge, 0.02, 0.08)) * jnp.where(out[..., 1] > -0.001, 0.85, 0.30)
    crease = jnp.exp(-(((height - edge - 0.34) / 0.08) ** 2)) * (out[..., 1] > 0) * 0.28
    return tone * (1 - lash)[..., None] * (1 - crease)[..., None]


def _eye_center(side):
    one = jnp.ones_like(side)
    return jnp.stack([side, one, one], axis=-1) * jnp.asarray(growth.EYE, jnp.float32)[None, None]


def _eye(rest, factors):
    out = (rest - _eye_center(jnp.sign(rest[..., 0]))) / growth.EYE_RADIUS
    off = jnp.hypot(out[..., 0], out[..., 1])
    white = _each(0.93, 0.91, 0.90) * (1 - 0.35 * step(off, 0.55, 1.0))[..., None]
    white = white * (1 - 0.45 * step(out[..., 1], 0.18, 0.62))[..., None]  # in the lid's shadow
    iris = color(factors, "eye_color")
    turn = jnp.arctan2(out[..., 1], out[..., 0])
    fibres = 1 + 0.16 * jnp.sin(23 * turn + 2.0) * jnp.sin(31 * turn)
    iris = iris * (fibres * (0.75 + 0.55 * step(off, 0.16, 0.40)))[..., None]
    iris = iris * (1 - 0.65 * step(off, 0.40, 0.47))[..., None]
    eye = _mix(white, iris, 1 - step(off, 0.44, 0.50))
    eye = _mix(eye, _each(0.02, 0.02, 0.02), 1 - step(off, 0.17, 0.21))
    # A window's reflection makes an eye look alive.
    spot = 1 - step(jnp.hypot(out[..., 0] + 0.13, out[..., 1] - 0.17), 0.055, 0.095)
    return _mix(eye, _each(1.0, 1.0, 1.0), 0.9 * spot * (out[..., 2] > 0))


def _hair(rest, factors):
    hair, seed = color(factors, "hair_color"), factors.texture_seed
    down, around = rest[..., 0], rest[..., 1]
    strand = jnp.stack([around, 0.9 * down], axis=-1)
    curly = is_class(factors, "hair_style", "curly")
    coil = jnp.stack([around + 1.2 * jnp.sin(24 * down), 9 * down], axis=-1)
    strand = jnp.where(curly, coil, strand)
    pattern = 0.55 * waves(strand, 3.1, seed + 4) + 0.45 * waves(strand, 9.0, seed + 5)
    pattern = pattern + 0.35 * waves(strand * _each(1.0, 0.3), 24.0, seed + 6)
    sheen = jnp.exp(-(((down - 0.42) / 0.10) ** 2)) * 0.16
    return jnp.clip(hair * (1 + 0.24 * pattern + sheen)[..., None] + 0.03 * sheen[..., None], 0, 1)


def _cloth(rest, base, factors, stripes):
    down, around = rest[..., 0], rest[..., 1]
    seed = factors.texture_seed + 7
    folds = 0.05 * waves(jnp.stack([0.25 * around, 2 * down], -1), 3.0, seed)
    beanie = is_class(factors, "hat", "beanie") & (stripes > 40)
    ribs = jnp.where(beanie, 0.16, 0.02) * jnp.sin(2 * np.pi * around)
    weave = 0.02 * jnp.sin(stripes * 8 * down) * jnp.sin(stripes * around)
    return jnp.clip(base * (1 + folds + ribs + weave)[..., None], 0, 1)


def _mix(below, above, part):
    return below + (above - below) * jnp.clip(part, 0, 1)[..., None]


def backdrop(size: int, factors: Factors) -> Float[Array, "size size 3"]:
    """A wall behind, in sRGB: its colour, lighter behind the head, with a soft pattern."""
    line = (jnp.arange(size) + 0.5) / size * 2 - 1
    y, x = jnp.meshgrid(line, line, indexing="ij")
    at = jnp.stack([x, y], axis=-1)
    seed = factors.texture_seed + 11
    tilt = waves(jnp.ones((1, 1, 2)), 7.0, seed)[0, 0]
    glow = 1.08 - 0.16 * (x**2 + y**2) + 0.05 * tilt * (x - 0.6 * y)
    pattern = 0.025 * waves(at, 1.6, seed + 1) + 0.008 * waves(at, 14.0, seed + 2)
    return jnp.clip(color(factors, "background") * (glow + pattern)[..., None], 0, 1)


def eyelids_closed(factors: Factors) -> Bool[Array, "2"]:
    """Whether the head's left and right eye are shut, so that a lid is all that is seen of one."""
    blinks = [EXPRESSION.index(f"blink_{side}") for side in ("left", "right")]
    return factors.expression[jnp.array(blinks)] > 0.7

"""What chance makes of a seed: people, and the pictures of each."""

import functools

import jax
import numpy as np
from jaxtyping import Float

from data.procedural.factors import (
    ATTRIBUTES,
    CLASSES,
    EMOTIONS,
    EXPRESSION,
    IDENTITY,
    PERSON,
    Factors,
)
from fmv2.face.shading import BASIS_SCALES

CODE = 512
"""Length of an identity code, as ArcFace's."""

_MOST_SIGMAS = 2.2

_FACES = {
    "neutral": {},
    "happy": {"smile": (0.55, 0.95), "squint": (0.0, 0.35), "mouth_open": (0.0, 0.12)},
    "laughing": {"smile": (0.85, 1.0), "mouth_open": (0.45, 0.8), "squint": (0.35, 0.7)},
    "sad": {"mouth_frown": (0.6, 1.0), "inner_brow_raise": (0.65, 1.0)},
    "angry": {"brow_furrow": (0.75, 1.0), "mouth_frown": (0.2, 0.5), "lip_press": (0.4, 0.9)},
    "surprised": {"brow_raise": (0.75, 1.0), "eyes_wide": (0.7, 1.0), "mouth_open": (0.6, 1.0)},
    "disgusted": {
        "nose_wrinkle": (0.75, 1.0),
        "brow_furrow": (0.3, 0.6),
        "mouth_frown": (0.35, 0.7),
        "squint": (0.3, 0.6),
    },
    "sleepy": {"blink_left": (0.88, 1.0), "blink_right": (0.88, 1.0)},
    "winking": {"smile": (0.35, 0.7)},
    "pouting": {"pout": (0.75, 1.0), "brow_furrow": (0.0, 0.35)},
}
"""Of each emotion, which expression fields it draws and between what bounds."""

_ODDS = {
    "hair_style": (1, 3, 2, 3, 2, 1.5),
    "bangs": (3, 2),
    "hat": (5, 2, 2, 2),
    "glasses": (5, 2, 2, 1.5),
    "earrings": (5, 3, 1, 1),
    "necklace": (3, 1, 1),
    "lip_color": (4, 2, 1.5, 1, 1),
}
"""How likely the classes of an attribute are; evenly where nothing is said."""


def person(seed: int, number: int) -> tuple[Float[np.ndarray, "25"], dict[str, int]]:
    """An identity, and its classes of PERSON; the same for the same seed and number."""
    rng = _rng(seed, 0, number)
    identity = np.clip(rng.standard_normal(len(IDENTITY)), -_MOST_SIGMAS, _MOST_SIGMAS)
    classes = {name: int(rng.integers(len(labels))) for name, labels in PERSON.items()}
    return identity.astype(np.float32), classes


def factors(seed: int, item: int, number: int) -> Factors:
    """Picture `item`'s causes, of person `number`, in NumPy."""
    identity, classes = person(seed, number)
    rng = _rng(seed, 1, item)
    bearded = _rng(seed, 2, number).random() < 0.45
    classes |= {name: _pick(rng, name) for name in ATTRIBUTES}
    if not bearded:
        classes["beard"] = 0
    classes = _consistent(classes)
    emotion = int(rng.integers(len(EMOTIONS)))
    return Factors(
        identity=identity,
        expression=_expression(rng, EMOTIONS[emotion]),
        classes=np.array([classes[name] for name in CLASSES], np.int32),
        emotion=np.int32(emotion),
        rotation=_rotation(rng),
        camera=_camera(rng),
        light=_light(rng),
        texture_seed=np.uint32(rng.integers(2**32)),
    )


def stack(many: list[Factors]) -> Factors:
    """Single factors as a batch."""
    return jax.tree.map(lambda *x: np.stack(x), *many)


def named(classes: np.ndarray) -> dict[str, str]:
    """Class numbers as words."""
    return {name: CLASSES[name][int(n)] for name, n in zip(CLASSES, classes, strict=True)}


def identity_code(factors: Factors) -> Float[np.ndarray, "512"]:
    """Who it is, as a unit vector: it stands in for ArcFace's embedding in this world.

    Alike people have alike codes, and nothing of a picture but the person is in it.
    """
    person = [np.asarray(factors.identity)]
    for name, number in zip(CLASSES, factors.classes, strict=True):
        if name in PERSON:
            person.append(1.5 * np.eye(len(PERSON[name]), dtype=np.float32)[number])
    person = np.concatenate(person)
    code = _directions(len(person)) @ person
    return (code / np.linalg.norm(code)).astype(np.float32)


@functools.cache
def _directions(count: int) -> Float[np.ndarray, "512 count"]:
    """Orthonormal, and the same in every world."""
    drawn = np.random.Generator(np.random.PCG64(CODE)).standard_normal((CODE, count))
    return np.linalg.qr(drawn)[0]


def _rng(*words: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def _pick(rng: np.random.Generator, name: str) -> int:
    odds = np.array(_ODDS.get(name, [1] * len(ATTRIBUTES[name])), float)
    return int(rng.choice(len(odds), p=odds / odds.sum()))


def _consistent(classes: dict[str, int]) -> dict[str, int]:
    """What cannot be seen together, or says nothing, is its first class."""

    def has(name: str, *labels: str) -> bool:
        return ATTRIBUTES[name][classes[name]] in labels

    gone = {
        "bangs": has("hair_style", "bald") or not has("hat", "none"),
        "hair_color": False,
        "hat_color": has("hat", "none"),
        "glasses_color": has("glasses", "none", "sunglasses"),
        "earring_color": has("earrings", "none"),
    }
    hidden = {name: 0 for name, is_gone in gone.items() if is_gone}
    if not has("hat", "none") and has("hair_style", "bun", "curly"):  # a hat leaves them no place
        hidden["hair_style"] = ATTRIBUTES["hair_style"].index("short")
    return classes | hidden


def _expression(rng: np.random.Generator, emotion: str) -> Float[np.ndarray, "13"]:
    fields = dict.fromkeys(EXPRESSION, 0.0)
    for name, (low, high) in _FACES[emotion].items():
        fields[name] = rng.uniform(low, high)
    if emotion == "winking":
        fields[str(rng.choice(["blink_left", "blink_right"]))] = rng.uniform(0.9, 1.0)
    # Faces are never quite still.
    for name in ("brow_raise", "squint", "mouth_open"):
        fields[name] = float(np.clip(fields[name] + rng.uniform(0, 0.08), 0, 1))
    return np.array(list(fields.values()), np.float32)


def _rotation(rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    """Pitch, yaw and roll in turn; the head looks left and right more than up and down."""
    from scipy.spatial.transform import Rotation

    sigmas, most = np.array([7.0, 19.0, 5.0]), np.array([16.0, 42.0, 12.0])
    pitch, yaw, roll = np.clip(rng.standard_normal(3) * sigmas, -most, most)
    return (
        Rotation.from_euler("zyx", [roll, yaw, pitch], degrees=True).as_rotvec().astype(np.float32)
    )


def _camera(rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    shift = np.clip(rng.standard_normal(2) * 0.006, -0.012, 0.012)
    return np.array([rng.uniform(5.4, 6.4), shift[0], 0.010 + shift[1]], np.float32)


def _light(rng: np.random.Generator) -> Float[np.ndarray, "9 3"]:
    """Ambient and one or two lamps, as the nine harmonics of what falls on a normal.

    A lamp's max(0, cos) is cut off after its second band, which dips below zero behind it: as much
    ambient is added as keeps every normal's light at 0.06 at least.
    """
    coefficients = np.zeros((9, 3))
    warmth = rng.uniform(-0.10, 0.12)
    tint = np.array([1 + warmth, 1.0, 1 - warmth])
    lamps = [(rng.uniform(0.75, 1.35), rng.uniform(-75, 75), rng.uniform(-15, 60), tint)]
    if rng.random() < 0.35:
        other = np.clip(1 + 0.25 * rng.standard_normal(3), 0.5, 1.5)
        lamps.append(
            (rng.uniform(0.2, 0.6), -np.sign(lamps[0][1]) * rng.uniform(50, 110), 10, other)
        )
    for strength, azimuth, height, tinge in lamps:
        a, h = np.radians(azimuth), np.radians(height)
        x, y, z = np.sin(a) * np.cos(h), np.sin(h), np.cos(a) * np.cos(h)
        # max(0, cos) is 1/4 + cos/2 + 5/32 (3 cos² - 1) up to its second band.
        bands = [0.25, x / 2, y / 2, z / 2]
        bands += [15 / 16 * x * y, 15 / 16 * x * z, 15 / 16 * y * z]
        bands += [15 / 64 * (x * x - y * y), 5 / 64 * (3 * z * z - 1)]
        coefficients += strength * np.array(bands)[:, None] * tinge[None]
    coefficients[0] += rng.uniform(0.18, 0.50) * (0.5 + 0.5 * tint)
    darkest = _irradiance(coefficients).min(axis=0)
    coefficients[0] += np.maximum(0.06 - darkest, 0)
    brightest = _irradiance(coefficients).max()
    coefficients *= min(1.0, 1.34 / brightest)
    return (coefficients / np.array(BASIS_SCALES)[:, None]).astype(np.float32)


def _irradiance(bands: np.ndarray) -> Float[np.ndarray, "n 3"]:
    """On many normals, of harmonics without their scales."""
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    z, a = (x.ravel() for x in np.meshgrid(np.linspace(-1, 1, 13), turn, indexing="ij"))
    r = np.sqrt(1 - z * z)
    x, y = r * np.cos(a), r * np.sin(a)
    basis = [np.ones_like(x), x, y, z, x * y, x * z, y * z, x * x - y * y, 3 * z * z - 1]
    return np.stack(basis, axis=1) @ bands

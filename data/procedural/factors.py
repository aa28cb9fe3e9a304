"""The causes of a procedural picture, for geometry, words and measures alike."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Float, Int, UInt32

IDENTITY: tuple[str, ...] = (
    "face_width",
    "face_length",
    "jaw_width",
    "chin_length",
    "chin_protrusion",
    "cheekbone_width",
    "cheek_fullness",
    "forehead_height",
    "forehead_slope",
    "brow_ridge",
    "brow_thickness",
    "eye_size",
    "eye_spacing",
    "eye_tilt",
    "eye_depth",
    "nose_length",
    "nose_width",
    "nose_bridge",
    "nose_tip_turn",
    "mouth_width",
    "upper_lip_thickness",
    "lower_lip_thickness",
    "ear_size",
    "ear_flare",
    "neck_width",
)
"""What makes a person, in standard deviations: the first shape coefficients of the head. The brows'
thickness alone is painted, not shaped."""

EXPRESSION: tuple[str, ...] = (
    "smile",
    "mouth_open",
    "mouth_frown",
    "pout",
    "lip_press",
    "brow_raise",
    "inner_brow_raise",
    "brow_furrow",
    "blink_left",
    "blink_right",
    "eyes_wide",
    "squint",
    "nose_wrinkle",
)
"""What a face does, from 0 (nothing) to 1 (fully); `mouth_open` also turns the jaw."""

SKIN_TONES = ("pale", "fair", "tan", "brown", "dark")
EYE_COLORS = ("brown", "blue", "green", "grey", "amber")
HAIR_COLORS = ("black", "brown", "blond", "red", "grey", "white", "blue", "pink", "green")
PAINTS = ("black", "white", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")

PERSON: Mapping[str, tuple[str, ...]] = {
    "skin_tone": SKIN_TONES,
    "eye_color": EYE_COLORS,
}
"""Classes that belong to the person, the same in all pictures of them."""

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "hair_style": ("bald", "short", "bob", "long", "curly", "bun"),
    "hair_color": HAIR_COLORS,
    "bangs": ("none", "bangs"),
    "hat": ("none", "cap", "beanie", "brimmed"),
    "hat_color": PAINTS,
    "glasses": ("none", "round", "square", "sunglasses"),
    "glasses_color": ("black", "brown", "red", "blue", "gold"),
    "beard": ("none", "stubble", "moustache", "goatee", "full"),
    "lip_color": ("natural", "red", "pink", "purple", "brown"),
    "earrings": ("none", "both", "left", "right"),
    "earring_color": ("gold", "silver", "red", "blue"),
    "necklace": ("none", "gold", "silver"),
    "cloth_color": PAINTS,
    "background": ("grey", "white", "black", "blue", "green", "red", "yellow", "brown"),
}
"""Classes that change from picture to picture. Left and right are the picture's own sides. The
colour of a thing that is absent says nothing and is its first class."""

CLASSES: Mapping[str, tuple[str, ...]] = {**PERSON, **ATTRIBUTES}

EMOTIONS: tuple[str, ...] = (
    "neutral",
    "happy",
    "laughing",
    "sad",
    "angry",
    "surprised",
    "disgusted",
    "sleepy",
    "winking",
    "pouting",
)
"""The sampler draws expression fields for one of these; the words tell the fields."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    """One picture's causes, in NumPy or JAX; with a leading axis in all fields, a batch of them."""

    identity: Float[Any, "25"]
    """By IDENTITY."""
    expression: Float[Any, "13"]
    """By EXPRESSION."""
    classes: Int[Any, "16"]
    """By CLASSES: the number of each one's class."""
    emotion: Int[Any, ""]
    """Place in EMOTIONS."""
    rotation: Float[Any, "3"]
    """Of the head: axis times angle in radians, as FLAME's root joint."""
    camera: Float[Any, "3"]
    """See `fmv2.face.camera.project`."""
    light: Float[Any, "9 3"]
    """See `fmv2.face.shading.shade`; never negative on any normal."""
    texture_seed: UInt32[Any, ""]
    """Of what is random and named by no word: strands, freckles, the background's pattern."""

"""The regions that words speak of, as unions of canonical labels."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, UInt8

from fmv2.face.labels import NUMBER

REGIONS: Mapping[str, tuple[str, ...] | None] = {
    "hair": ("hair",),
    "brows": ("l_brow", "r_brow"),
    # Parsers call eyes behind glass glasses.
    "eyes": ("l_eye", "r_eye", "eye_g"),
    "left_eye": ("r_eye",),
    "right_eye": ("l_eye",),
    "glasses": ("eye_g",),
    "ears": ("l_ear", "r_ear"),
    "earrings": ("ear_r",),
    "nose": ("nose",),
    "lips": ("u_lip", "l_lip"),
    "mouth": ("u_lip", "l_lip", "mouth"),
    "skin": ("skin", "nose"),
    "beard": None,
    "neck": ("neck",),
    "necklace": ("neck_l",),
    "clothes": ("cloth",),
    "hat": ("hat",),
    "expression": (
        *("l_brow", "r_brow", "l_eye", "r_eye", "eye_g"),
        *("u_lip", "l_lip", "mouth"),
    ),
}
"""What each is made of. Left and right are the picture's own sides here, as words have them, and
the head's in labels. None: no label tells it, and whoever makes the picture gives its mask."""


def region_mask(name: str, labels: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Where a region is that labels tell.

    Raises:
      ValueError: no label tells it; its mask comes from elsewhere.
    """
    parts = REGIONS[name]
    if parts is None:
        raise ValueError(f"no label tells the region {name!r}: give its own mask")
    return np.isin(labels, [NUMBER[part] for part in parts])

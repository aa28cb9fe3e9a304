"""The regions of a face by name: the canonical label map, in CelebAMask-HQ's words."""

LABELS = (
    "background",
    "skin",
    "l_brow",
    "r_brow",
    "l_eye",
    "r_eye",
    "eye_g",
    "l_ear",
    "r_ear",
    "ear_r",
    "nose",
    "mouth",
    "u_lip",
    "l_lip",
    "neck",
    "neck_l",
    "cloth",
    "hair",
    "hat",
)
"""A label's number is its place here. "l_" and "r_" are the head's own left and right; eye_g is
glasses, ear_r earrings, neck_l a necklace, mouth what an open mouth shows inside."""

NUMBER = {name: number for number, name in enumerate(LABELS)}


def mirrored() -> tuple[int, ...]:
    """The label that each label becomes in a picture flipped left to right."""
    other_side = {"l_": "r_", "r_": "l_"}
    turned = [other_side.get(name[:2], name[:2]) + name[2:] for name in LABELS]
    # l_lip has no other side: it is the lower lip.
    return tuple(NUMBER.get(new, NUMBER[name]) for name, new in zip(LABELS, turned, strict=True))

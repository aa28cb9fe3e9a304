"""What a face becomes before pictures are made of it: identity, structure, shading, landmarks."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from fmv2.errors import UserError
from fmv2.face.head import Head, render_head
from fmv2.face.shading import BASIS_SCALES
from fmv2.models.coefficient_encoder import Coefficients
from fmv2.models.id_adapter import mix_identities

NEUTRAL_LIGHT = (
    np.array([0.55, 0, 0, 0.5, 0, 0, 0, 0, 5 / 32]) / np.array(BASIS_SCALES)
)[:, None].repeat(3, axis=1).astype(np.float32)  # fmt: skip
"""White, from where the viewer stands, and some from everywhere: harmonics of
`fmv2.face.shading.shade`, of a lamp cut off after its second band."""

Change = Literal["neutral"] | Coefficients | Sequence[float] | np.ndarray | None
"""What becomes of a part of a head: None leaves it, "neutral" undoes it, `Coefficients` are another
face's (`Conditions.coefficients`), and numbers are the part itself."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Conditions:
    """What one picture is told of a face, in NumPy; `FaceMakeUp.prepare` makes them."""

    identity: Float[np.ndarray, "d"]
    """The face encoder's, of unit length."""
    features: Float[np.ndarray, "t f"]
    """Hidden state -2 of the image encoder."""
    shading: UInt8[np.ndarray, "s s 3"]
    """Of the size of the pictures to be made."""
    landmarks: Float[np.ndarray, "5 2"] | None = None
    """Where the shading puts ArcFace's five points, x and y in its pixels; None if not known."""
    face: UInt8[np.ndarray, "a a 3"] | None = None
    """The aligned face that identity and features were seen in."""
    coefficients: Coefficients | None = None
    """Of the head in the shading; None where it was not rendered."""


def change(
    found: Coefficients, expression: Change, pose: Change, light: Change
) -> tuple[Coefficients, list[str]]:
    """One head with some of its parts replaced, and what is wrong with the replacements.

    The jaw, which is in `pose`, belongs to the expression: a neutral expression closes it, another
    face's brings its own, and a pose of three numbers, or another face's, leaves it.

    Args:
      found: of one head, in NumPy, without batch axis.
      expression: up to 50 numbers; those left out are zero.
      pose: the head's rotation, axis times angle in radians, or that and the jaw's.
      light: (9, 3), or 27 numbers.
    """
    faults: list[str] = []

    def part(name: str, asked: Change, own: Any, expected: str, fits: Any) -> np.ndarray:
        """What the numbers asked for are; the part itself where others decide."""
        if asked is None or isinstance(asked, Coefficients):
            return own if asked is None else getattr(asked, name)
        if isinstance(asked, str):
            if asked == "neutral":
                return NEUTRAL_LIGHT if name == "light" else np.zeros_like(own)
            faults.append(f"{name}={asked!r}: expected neutral, or numbers")
            return own
        numbers = np.asarray(asked, np.float32)
        if fits(numbers.shape) and np.isfinite(numbers).all():
            return numbers
        faults.append(f"{name} of shape {numbers.shape}: expected {expected}, finite")
        return own

    most = found.expression.size
    spoken = part(
        "expression",
        expression,
        found.expression,
        f"up to {most} numbers",
        lambda shape: len(shape) == 1 and shape[0] <= most,
    )
    turned = part(
        "pose", pose, found.pose, "3 numbers, or 6 with the jaw's", lambda s: s in ((3,), (6,))
    )
    lit = part("light", light, found.light, "(9, 3)", lambda shape: shape in ((9, 3), (27,)))
    jaw = found.pose[3:]
    if isinstance(expression, Coefficients):
        jaw = expression.pose[3:]
    elif isinstance(expression, str):
        jaw = np.zeros_like(jaw)
    if len(turned) == 6 and not isinstance(pose, str | Coefficients | None):
        jaw = turned[3:]
    made = {
        "expression": np.pad(spoken, (0, most - spoken.size)),
        "pose": np.concatenate([turned[:3], jaw]),
        "light": lit.reshape(9, 3),
    }
    fields: dict[str, Any] = {
        name: np.asarray(x, np.float32) for name, x in (found._asdict() | made).items()
    }
    return Coefficients(**fields), faults


def draw_head(head: Head, found: Coefficients, size: int) -> tuple[Array, Array]:
    """Shading maps, as bytes, and the five landmarks of heads.

    Args:
      found: of b heads.
      size: side of the maps in pixels; the camera's crop is all of it.
    """

    def one(coefficients: Coefficients):
        drawn = render_head(
            head,
            coefficients.shape,
            coefficients.expression,
            coefficients.pose,
            coefficients.camera,
            coefficients.light,
            size=size,
        )
        return jnp.round(255 * drawn.shading).astype(jnp.uint8), drawn.five_points

    return jax.vmap(one)(found)


def mix(people: Sequence[tuple[Conditions, float]]) -> Conditions:
    """One identity out of several, in the shading of the first.

    Embeddings and features are averaged, not tokens put beside each other nor attention summed:
    the adapter has learnt from one person at a time, of unit length, and gets one. A weight of 1
    beside zeros is that person.

    Raises:
      UserError: weights below zero, not finite, or all zero; or nobody.
    """
    weights = np.array([weight for _, weight in people], np.float32)
    if not weights.size or not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        raise UserError(
            f"weights of identities are {weights.tolist()}: expected numbers of 0 or more, one"
            " above 0 at least"
        )
    identity, features = mix_identities(
        jnp.stack([jnp.asarray(found.identity)[None] for found, _ in people]),
        jnp.stack([jnp.asarray(found.features)[None] for found, _ in people]),
        jnp.asarray(weights),
    )
    mixed: dict[str, Any] = {
        "identity": np.asarray(identity[0]),
        "features": np.asarray(features[0]),
    }
    return dataclasses.replace(people[0][0], **mixed, face=None)

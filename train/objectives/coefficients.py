"""A coefficient encoder that tells a picture's 3D head: shape, expression, pose, camera, light.

Paper: Feng et al. 2021 (DECA), whose encoder it is; here the right answer is in the record, so that
nothing need be rendered. Each field is measured by what its error does to the head: rotations by
their angle, the camera by where the head goes, light by what it adds to surfaces. The texture,
which no record knows, is not taught.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from data.schema import Batch
from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.errors import UserError
from fmv2.face.flame import rotation_matrices
from fmv2.face.shading import BASIS_POWERS
from fmv2.inputs import resize, shading_input
from fmv2.models.coefficient_encoder import CoefficientEncoderConfig

Metrics = dict[str, Float[Array, ""]]

_TERMS = ("shape", "expression", "pose", "camera", "light")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coefficients:
    """The weights of the terms."""

    coefficient_encoder: CoefficientEncoderConfig = dataclasses.field(
        default_factory=CoefficientEncoderConfig.embedded
    )
    """Of a net that begins afresh."""
    shape_weight: float = 1.0
    """Of the squared error of a coefficient, in standard deviations."""
    expression_weight: float = 5.0
    """Of the same."""
    pose_weight: float = 10.0
    """Of the squared angle of head and jaw, in radians."""
    camera_weight: float = 10.0
    """Of the squared errors of scale, relative, and of place, in halves of the picture."""
    light_weight: float = 5.0
    """Of the squared error of the light on a white surface, over all directions."""

    trained = ("coefficient_encoder",)
    frozen = ()
    extras = ("coefficients",)

    def __post_init__(self):
        weights = [f"{name}_weight" for name in _TERMS]
        if faults := [f"{name}={w}" for name in weights if (w := getattr(self, name)) < 0]:
            raise UserError(f"objective: {', '.join(faults)}: expected 0 or more")

    def grids(self, size: int) -> tuple[int, ...]:
        """None: it looks at no masks."""
        return ()

    def fresh(self, configs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The encoder."""
        return {"coefficient_encoder": self.coefficient_encoder}

    def loss(
        self,
        trained: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: Batch,
        key: Array,
        schedule: NoiseSchedule,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The weighted sum of the terms, and each by itself.

        Args:
          trained: the encoder, with float32 weights; its norms use the batch.
          frozen: nothing.
          batch: with coefficients, whose camera's crop is the whole picture.
          key: not used.
          schedule: not looked at.
        """
        encoder = trained["coefficient_encoder"]
        encoder.train()
        found = encoder(resize(shading_input(batch.image), encoder.config.image_size))
        wanted = batch.coefficients
        assert wanted is not None  # `extras` names them
        terms = {
            "shape": jnp.square(found.shape - wanted["shape"]).mean(),
            "expression": jnp.square(found.expression - wanted["expression"]).mean(),
            "pose": rotation_loss(found.pose, wanted["pose"]),
            "camera": camera_loss(found.camera, wanted["camera"]),
            "light": light_loss(found.light, wanted["light"]),
        }
        loss = sum(getattr(self, f"{name}_weight") * term for name, term in terms.items())
        return jnp.asarray(loss), {"loss": jnp.asarray(loss), **terms}


def rotation_loss(found: Float[Array, "b n"], wanted: Float[Array, "b n"]) -> Float[Array, ""]:
    """½ |R - R'|², summed over the entries, of rotations given as axis times angle: 2 (1 - cos) of
    the angle between them, its square where it is small. The mean over rotations.

    That an axis by an angle and its opposite by 2π less are one rotation makes no difference here.
    """
    one, other = (rotation_matrices(x.reshape(-1, 3)) for x in (found, wanted))
    return 0.5 * jnp.square(one - other).sum(axis=(1, 2)).mean()


def camera_loss(found: Float[Array, "b 3"], wanted: Float[Array, "b 3"]) -> Float[Array, ""]:
    """Squared relative error of the scale, and squared distance of the world's origin in the
    picture, whose halves are 1; see `fmv2.face.camera.project`."""
    scale, right_scale = found[:, 0], wanted[:, 0]
    place, right_place = (x[:, :1] * x[:, 1:] for x in (found, wanted))
    relative = jnp.square(scale / right_scale - 1)
    return (relative + jnp.square(place - right_place).sum(axis=1)).mean()


def light_loss(found: Float[Array, "b 9 3"], wanted: Float[Array, "b 9 3"]) -> Float[Array, ""]:
    """Mean squared error of the irradiance over all directions and channels, unclamped.

    By the orthogonality of the harmonics it needs no normals: each error counts by its own square.
    """
    weight = jnp.asarray(BASIS_POWERS, jnp.float32)
    return (jnp.square(found - wanted) * weight[None, :, None]).sum(axis=1).mean()

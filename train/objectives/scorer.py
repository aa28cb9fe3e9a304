"""The scorer: what is seen in a picture of the procedural world, each thing against its cause.

The 3D head's coefficients are measured as `train.objectives.coefficients` does, attributes by cross
entropy. A thing that is hidden (hair under a hat) still has its class in the record: on true
renders too the scorer cannot know it, which its accuracy there says.

Pictures are changed on the way in, since it will judge pictures that a small model has drawn: some
are softened, and all have some noise and another gain.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from data.procedural.factors import CLASSES, EMOTIONS, EXPRESSION, IDENTITY, PERSON
from data.schema import Batch
from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.errors import UserError
from fmv2.inputs import resize, shading_input
from fmv2.metrics.scorer import ScorerConfig
from fmv2.models.coefficient_encoder import CoefficientEncoderConfig
from train.objectives.coefficients import camera_loss, light_loss, rotation_loss

Metrics = dict[str, Float[Array, ""]]

TRUNK = CoefficientEncoderConfig(
    layers=(1, 2, 2, 1), widths=(16, 24, 48, 80), hidden_size=320, image_size=128
)
"""The embedded default's."""

_CAMERA, _CAMERA_SPREAD = (5.9, 0.0, 0.01), (0.3, 0.006, 0.006)
"""Middle and spread of the world's, see `data.procedural.chance`."""

_TERMS = ("shape", "expression", "pose", "camera", "light", "classes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
    """The weights of the terms, and how pictures are changed."""

    trunk: CoefficientEncoderConfig = TRUNK
    """Of a scorer that begins afresh."""
    channels: int = 32
    """Of the same: see `fmv2.metrics.scorer.ScorerConfig`."""
    shape_weight: float = 3.0
    """Of the squared error of an identity field, in standard deviations."""
    expression_weight: float = 5.0
    """Of the squared error of an expression field, from 0 to 1."""
    pose_weight: float = 10.0
    """Of the squared angle of head and jaw, in radians."""
    camera_weight: float = 100.0
    """Of the squared errors of scale, relative, and of place, in halves of the picture."""
    light_weight: float = 5.0
    """Of the squared error of the light on a white surface, over all directions."""
    classes_weight: float = 2.0
    """Of the cross entropy, the mean over attributes."""
    softened: float = 0.5
    """Share of the pictures that lose detail: more or less of what half the size cannot hold."""
    noise: float = 0.03
    """Largest standard deviation of a picture's noise, in [0, 1]."""
    gain: float = 0.05
    """Largest relative change of a picture's brightness, which must not pass for another light."""

    trained = ("scorer",)
    frozen = ()
    extras = ("coefficients", "factors")

    def __post_init__(self):
        weights = [f"{name}_weight" for name in _TERMS]
        limits = {name: (getattr(self, name) >= 0, "0 or more") for name in (*weights, "noise")}
        limits |= {
            "softened": (0 <= self.softened <= 1, "0 to 1"),
            "gain": (0 <= self.gain < 1, "0 or more, below 1"),
        }
        if faults := [
            f"{name}={getattr(self, name)}: expected {wanted}"
            for name, (holds, wanted) in limits.items()
            if not holds
        ]:
            raise UserError("objective: " + "; ".join(faults))

    def grids(self, size: int) -> tuple[int, ...]:
        """None: it looks at no masks."""
        return ()

    def fresh(self, configs: Mapping[str, Any]) -> Mapping[str, Any]:
        """A scorer of this world."""
        return {
            "scorer": ScorerConfig(
                trunk=self.trunk,
                channels=self.channels,
                identity=IDENTITY,
                expression=EXPRESSION,
                classes={**CLASSES, "emotion": EMOTIONS},
                person=tuple(PERSON),
                camera=_CAMERA,
                camera_spread=_CAMERA_SPREAD,
            )
        }

    def loss(
        self,
        trained: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: Batch,
        key: Array,
        schedule: NoiseSchedule,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The weighted sum of the terms, each by itself, and the share of attributes told right.

        Args:
          trained: the scorer, with float32 weights; its norms use the batch.
          frozen: nothing.
          batch: of the procedural world, with coefficients and factors.
          key: for what is changed in the pictures.
          schedule: not looked at.
        """
        scorer = trained["scorer"]
        scorer.train()
        images = resize(shading_input(batch.image), scorer.config.trunk.image_size)
        found = scorer(self._changed(images, key))
        wanted, factors = batch.coefficients, batch.factors
        assert wanted is not None  # `extras` names them
        assert factors is not None
        classes = {name: factors[name] for name in found.logits}
        entropies = {
            name: optax.softmax_cross_entropy_with_integer_labels(logits, classes[name]).mean()
            for name, logits in found.logits.items()
        }
        right = {
            name: (logits.argmax(axis=-1) == classes[name]).mean()
            for name, logits in found.logits.items()
        }
        identity, expression = len(scorer.config.identity), len(scorer.config.expression)
        terms = {
            "shape": jnp.square(found.identity - wanted["shape"][:, :identity]).mean(),
            "expression": jnp.square(
                found.expression - wanted["expression"][:, :expression]
            ).mean(),
            "pose": rotation_loss(found.pose, wanted["pose"]),
            "camera": camera_loss(found.camera, wanted["camera"]),
            "light": light_loss(found.light, wanted["light"]),
            "classes": jnp.mean(jnp.stack(list(entropies.values()))),
        }
        loss = jnp.asarray(sum(getattr(self, f"{name}_weight") * x for name, x in terms.items()))
        accuracy = jnp.mean(jnp.stack(list(right.values())))
        return loss, {"loss": loss, **terms, "accuracy": accuracy}

    def _changed(self, images: Float[Array, "b s s 3"], key: Array) -> Float[Array, "b s s 3"]:
        """Softer, noisier, darker or brighter; in [0, 1]."""
        chosen, strength, noise, sigma, gain = jax.random.split(key, 5)
        shape = (len(images), 1, 1, 1)
        soft = resize(resize(images, images.shape[1] // 2), images.shape[1])
        weight = jax.random.uniform(strength, shape)
        weight = jnp.where(jax.random.uniform(chosen, shape) < self.softened, weight, 0.0)
        images = images + weight * (soft - images)
        images = images * (1 + self.gain * jax.random.uniform(gain, shape, minval=-1.0))
        sigmas = self.noise * jax.random.uniform(sigma, shape)
        return jnp.clip(images + sigmas * jax.random.normal(noise, images.shape), 0, 1)

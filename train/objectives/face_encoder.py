"""A face encoder that tells the people of the training split apart.

Paper: Deng et al. 2019 (ArcFace): the angle between an embedding and its person's centre is made
harder by a margin; a softmax over all centres follows. The centres are thrown away afterwards.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from data.schema import Batch
from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.errors import UserError
from fmv2.inputs import image_input, resize
from fmv2.models.arcface import ArcFaceConfig, normalize
from train.heads import ClassCentersConfig

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaceEncoder:
    """One term: the angular margin."""

    identities: int
    """People in the data set, those of other splits included: one more than the largest
    `factors/identity`."""
    face_encoder: ArcFaceConfig = dataclasses.field(default_factory=ArcFaceConfig.embedded)
    """Of a net that begins afresh."""
    scale: float = 64.0
    """What cosines are multiplied by."""
    margin: float = 0.5
    """Radians that are added to the angle of the right person."""
    noise: float = 0.05
    """Standard deviation of noise on the pixels, in [-1, 1]: the encoder will see estimates."""
    jitter: float = 0.2
    """Largest relative change of each picture's contrast, and largest shift of its brightness."""

    trained = ("face_encoder", "class_centers")
    frozen = ()
    extras = ("factors",)

    def __post_init__(self):
        limits = {
            "identities": self.identities >= 2,
            "scale": self.scale > 0,
            "margin": 0 <= self.margin < math.pi / 2,
            "noise": self.noise >= 0,
            "jitter": 0 <= self.jitter < 1,
        }
        if faults := [f"{name}={getattr(self, name)}" for name, ok in limits.items() if not ok]:
            raise UserError(f"objective settings out of range: {', '.join(faults)}")

    def grids(self, size: int) -> tuple[int, ...]:
        """None: it looks at no masks."""
        return ()

    def fresh(self, configs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The encoder, and centres of the width of the one that is there."""
        encoder = configs.get("face_encoder", self.face_encoder)
        centers = ClassCentersConfig(classes=self.identities, embedding_size=encoder.embedding_size)
        return {"face_encoder": encoder, "class_centers": centers}

    def loss(
        self,
        trained: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: Batch,
        key: Array,
        schedule: NoiseSchedule,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The margin term, and how often the right person is the nearest.

        A person beyond `identities` makes the loss NaN, which stops the run; `unknown` is their
        share in the batch.

        Args:
          trained: encoder and centres, with float32 weights; the encoder's norms use the batch.
          frozen: nothing.
          batch: with factors.
          key: for what is changed in the pictures.
          schedule: not looked at.
        """
        encoder, centers = trained["face_encoder"], trained["class_centers"].centers[...]
        assert batch.factors is not None  # `extras` names them
        person = batch.factors["identity"]
        faces = resize(image_input(batch.face), encoder.config.image_size)
        encoder.train()
        cosines = jnp.matmul(
            normalize(encoder(self._changed(faces, key))), normalize(centers).T, precision="highest"
        )
        known = (person >= 0) & (person < self.identities)
        margin = margin_loss(cosines, person, self.scale, self.margin)
        margin = jnp.where(known.all(), margin, jnp.nan)
        right = (cosines.argmax(axis=1) == person).mean()
        terms = {"margin": margin, "accuracy": right, "unknown": 1 - known.mean()}
        return margin, {"loss": margin, **terms}

    def _changed(self, faces, key):
        """In contrast, brightness and noise."""
        contrast, brightness, noise = jax.random.split(key, 3)
        shape = (len(faces), 1, 1, 1)
        gain = 1 + self.jitter * jax.random.uniform(contrast, shape, minval=-1.0)
        shift = self.jitter * jax.random.uniform(brightness, shape, minval=-1.0)
        return gain * faces + shift + self.noise * jax.random.normal(noise, faces.shape)


def margin_loss(
    cosines: Float[Array, "b n"], person: Int[Array, " b"], scale: float, margin: float
) -> Float[Array, ""]:
    """Cross entropy of scale·cos(θ + margin) of the right person among scale·cos(θ) of the others.

    Where θ + margin passes π the cosine would rise again: there it goes on straight, as in the
    authors' code.

    Source: Deng et al. 2019, eq. 3.
    """
    rows = jnp.arange(len(person))
    right = cosines[rows, person]
    sine = jnp.sqrt(jnp.maximum(1 - jnp.square(right), 1e-12))
    harder = right * math.cos(margin) - sine * math.sin(margin)
    straight = right - margin * math.sin(margin)
    harder = jnp.where(right > -math.cos(margin), harder, straight)
    logits = scale * cosines.at[rows, person].set(harder)
    return (jax.nn.logsumexp(logits, axis=1) - scale * harder).mean()

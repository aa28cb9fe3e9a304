"""Face-MakeUpV2: IdAdapter and ShadingNet learn beside a frozen Stable Diffusion.

Paper: arXiv 2510.21775. Three terms: the noise, the attention of each phrase on its region, and the
identity of the face in the estimated image.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from data.loader import Extra
from data.schema import Batch
from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.errors import UserError
from fmv2.face.align import TEMPLATE, crop_face
from fmv2.inputs import face_features, face_identity, keep, shading_input
from fmv2.models.id_adapter import IdAdapterConfig
from fmv2.models.layers import Start
from fmv2.models.shadingnet import ShadingNetConfig
from train.losses import (
    MapLoss,
    cubic_timesteps,
    identity_loss,
    map_loss,
    noise_loss,
    spread_loss,
    stratified_timesteps,
    uniform_timesteps,
)
from train.objectives.diffusion import (
    Chance,
    LatentSource,
    draw_chance,
    latent_extras,
    scaled_latents,
)

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaceMakeUp:
    """The objective's terms and their weights."""

    map_loss: MapLoss = "mass"
    """`mass`: the attention that falls outside the region; `upstream`: as published; `none`."""
    map_weight: float = 1e-3
    """Of the map term; 0 leaves it out."""
    spread_weight: float = 0.0
    """Of how unevenly a phrase looks at its region, see `train.losses.spread_loss`: the term is
    several nats, so a thousandth is a lot. 0 leaves it out."""
    id_weight: float = 0.1
    """0 leaves the identity term out, and with it the decoding of images."""
    id_every: int = 8
    """One sample in so many is decoded for the identity term."""
    id_bound: int = 250
    """Training step below which those samples lie: above, the estimated image shows no face yet."""
    identity: Literal["record", "face_encoder"] = "record"
    """Whose embedding: the record's, or what the model's face encoder sees in the aligned face."""
    rank: int = 128
    """Of the LoRA of an adapter that begins afresh."""
    start: Start = "published"
    """What a fresh adapter and ShadingNet begin as, see `fmv2.models.layers.Start`."""
    timesteps: Literal["uniform", "cubic"] = "uniform"
    """Which training steps are drawn: all alike, or most of them noisy, where the layout that the
    shading map tells is decided."""
    min_snr_gamma: float | None = None
    """Weight the noise term by min(SNR, gamma)/SNR; 5 in the paper of that name."""
    latents: LatentSource = "vae"
    """Encode the picture at each step, or read the VAE's moments from the record."""

    trained = ("adapter", "shadingnet")

    def __post_init__(self):
        limits = {
            "map_weight": (self.map_weight >= 0, "0 or more"),
            "spread_weight": (self.spread_weight >= 0, "0 or more"),
            "id_weight": (self.id_weight >= 0, "0 or more"),
            "id_every": (self.id_every >= 1, "1 or more"),
            "id_bound": (self.id_bound >= 1, "1 or more"),
            "rank": (self.rank >= 1, "1 or more"),
            "min_snr_gamma": (self.min_snr_gamma is None or self.min_snr_gamma > 0, "more than 0"),
        }
        if faults := [
            f"{name}={getattr(self, name)}: expected {wanted}"
            for name, (holds, wanted) in limits.items()
            if not holds
        ]:
            raise UserError("objective: " + "; ".join(faults))

    @property
    def extras(self) -> tuple[Extra, ...]:
        """Optional fields of the batch that it needs."""
        return latent_extras(self.latents)

    @property
    def frozen(self) -> tuple[str, ...]:
        """The nets that it reads; the face encoder only where a term or the identity needs it."""
        faces = self.id_weight or self.identity == "face_encoder"
        nets = ("unet", "vae", "text_encoder", "image_encoder")
        return (*nets, "face_encoder") if faces else nets

    def grids(self, size: int) -> tuple[int, ...]:
        """Sides of the attention grids that the terms look at, for images of this size."""
        return (size // 16,) if self._maps or self.spread_weight else ()

    @property
    def _maps(self) -> bool:
        return self.map_loss != "none" and self.map_weight > 0

    def fresh(self, configs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Adapter and ShadingNet that fit the base's U-Net and encoders."""
        if "unet" not in configs:
            return {}
        fields = {}
        if "image_encoder" in configs:
            fields["face_dim"] = configs["image_encoder"].hidden_size
        if self.identity == "face_encoder" and "face_encoder" in configs:
            fields["id_dim"] = configs["face_encoder"].embedding_size
        return {
            "adapter": IdAdapterConfig.for_unet(configs["unet"], rank=self.rank, **fields),
            "shadingnet": ShadingNetConfig.for_unet(configs["unet"]),
        }

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
          trained: the nets named in `trained`, with float32 weights.
          frozen: those named in `frozen`.
          batch: of square images.
          key: for latents, noise and timesteps.
          schedule: of the base model.
        Raises:
          UserError: timesteps, or the adapter's and the identity's width, do not go together.
        """
        chance = self.draw(frozen, batch, key, schedule)
        return self.loss_at(trained, frozen, batch, chance, schedule)

    def draw(
        self, frozen: Mapping[str, Any], batch: Batch, key: Array, schedule: NoiseSchedule
    ) -> Chance:
        """What `loss` leaves to chance; arguments as there."""
        total = schedule.num_train_timesteps

        def timesteps(key, count):
            if self.timesteps == "cubic":
                some = {"every": self.id_every, "bound": self.id_bound} if self.id_weight else {}
                return cubic_timesteps(key, count, total, **some)
            if not self.id_weight:
                return uniform_timesteps(key, count, total)
            return stratified_timesteps(key, count, self.id_every, self.id_bound, total)

        return draw_chance(frozen["vae"].config, batch, key, timesteps)

    def loss_at(
        self,
        trained: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: Batch,
        chance: Chance,
        schedule: NoiseSchedule,
    ) -> tuple[Float[Array, ""], Metrics]:
        """`loss`, with nothing left to chance."""
        _, noise, timesteps = chance
        x0 = scaled_latents(frozen["vae"], batch, chance.latents, self.latents)
        noisy = schedule.add_noise(x0, noise, timesteps)

        identity = self._identity(frozen, batch)
        tokens = self._id_tokens(trained["adapter"], frozen, batch, identity, batch.id_dropped)
        context = frozen["text_encoder"](batch.input_ids).last_hidden_state
        residuals = trained["shadingnet"](noisy, timesteps, tokens, shading_input(batch.shading))
        grids = self.grids(batch.image.shape[1])
        predicted, attention = frozen["unet"](
            noisy,
            timesteps,
            context,
            adapter=trained["adapter"],
            id_tokens=tokens,
            residuals=residuals,
            attention_at=grids,
        )
        target = schedule.target(x0, noise, timesteps)
        terms = {
            "noise": noise_loss(
                predicted, target, timesteps, schedule, min_snr_gamma=self.min_snr_gamma
            )
        }
        loss = terms["noise"]
        if grids:
            phrases = attention, batch.token_mask, batch.masks[grids[0]], batch.mask_valid
            if self._maps:
                terms["map"] = map_loss(*phrases, self.map_loss)
                loss += self.map_weight * terms["map"]
            if self.spread_weight:
                terms["spread"] = spread_loss(*phrases)
                loss += self.spread_weight * terms["spread"]
        if self.id_weight:
            predictions = schedule.predictions(predicted.astype(jnp.float32), noisy, timesteps)
            terms["id"], terms["id_cosine"] = self._identity_term(
                frozen, batch, predictions.sample, timesteps, identity, schedule
            )
            loss += self.id_weight * terms["id"]
        return loss, {"loss": loss, **terms}

    def _identity(self, frozen, batch):
        """Of the face itself, whether or not the model is told of it."""
        if self.identity == "record":
            return batch.face_id
        return face_identity(frozen["face_encoder"], batch.face)

    def id_tokens(
        self, adapter: Any, frozen: Mapping[str, Any], batch: Batch, dropped: Bool[Array, " b"]
    ) -> Float[Array, "b n d"]:
        """The tokens of the batch's identities, or of none where dropped."""
        return self._id_tokens(adapter, frozen, batch, self._identity(frozen, batch), dropped)

    def _id_tokens(self, adapter, frozen, batch, identity, dropped):
        if identity.shape[-1] != adapter.config.id_dim:
            raise UserError(
                f"objective.identity={self.identity} gives {identity.shape[-1]} numbers, but the "
                f"model's adapter takes {adapter.config.id_dim}: it was made for another encoder"
            )
        hidden = batch.face_dropped | dropped
        features = face_features(frozen["image_encoder"], batch.face, hidden)
        return adapter.image_proj(keep(identity, dropped), features)

    def _identity_term(self, frozen, batch, x0, timesteps, identity, schedule):
        """Of samples 0, every, 2·every, …: each device decodes the same number of its own."""

        def some(x):
            return x.reshape(-1, self.id_every, *x.shape[1:])[:, 0]

        landmarks = some(batch.landmarks)
        known = jnp.isfinite(landmarks).all(axis=(1, 2))
        # Not to be seen, but NaN would pass into the gradient even of what is not counted.
        landmarks = jnp.where(known[:, None, None], landmarks, jnp.asarray(TEMPLATE)[None])
        vae, encoder = frozen["vae"], frozen["face_encoder"]
        images = vae.decode(vae.config.unscale(some(x0))).astype(jnp.float32)
        # What lies beyond the picture is 0 in a crop, and black is -1 in an image.
        crop = jax.vmap(crop_face, in_axes=(0, 0, None))
        faces = crop(images + 1, landmarks, encoder.config.image_size) - 1
        weight = jnp.asarray(schedule.alphas_cumprod)[some(timesteps)]
        weight = jnp.where(known & ~some(batch.id_dropped), weight, 0)
        return identity_loss(encoder(faces), some(identity), weight)

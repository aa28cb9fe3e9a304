"""A text-to-image U-Net, on the latents of a frozen VAE and the words of a frozen text encoder.

Paper: Rombach et al. 2022 (latent diffusion). A small text encoder that learnt along, with Muon,
said the same of every text after 500 steps, before the U-Net had begun to listen.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float

from data.loader import Extra
from data.schema import Batch
from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.errors import UserError
from fmv2.models.unet import UNetConfig
from train.losses import map_loss, noise_loss, uniform_timesteps
from train.objectives.diffusion import LatentSource, draw_chance, latent_extras, scaled_latents

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToImage:
    """The noise, and where the U-Net looks. How often text is hidden, for guidance, is the run's
    `drops`."""

    unet: UNetConfig = dataclasses.field(default_factory=UNetConfig.embedded)
    """Of a U-Net that begins afresh."""
    map_weight: float = 0.0
    """Of the map term in its form "mass", see `train.losses.map_loss`; 0 leaves it out. A small
    U-Net without it reads all from the text's end and looks at no word."""
    min_snr_gamma: float | None = None
    """Weight the noise term by min(SNR, gamma)/SNR; 5 in the paper of that name."""
    latents: LatentSource = "vae"
    """Encode the picture at each step, or read the VAE's moments from the record."""

    trained = ("unet",)
    frozen = ("vae", "text_encoder")

    def __post_init__(self):
        faults = []
        if self.map_weight < 0:
            faults.append(f"map_weight={self.map_weight}: expected 0 or more")
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0:
            faults.append(f"min_snr_gamma={self.min_snr_gamma}: expected more than 0")
        if faults:
            raise UserError("objective: " + "; ".join(faults))

    @property
    def extras(self) -> tuple[Extra, ...]:
        """Optional fields of the batch that it needs."""
        return latent_extras(self.latents)

    def grids(self, size: int) -> tuple[int, ...]:
        """Sides of the attention grids that the map term looks at, for images of this size."""
        return (size // 16,) if self.map_weight else ()

    def fresh(self, configs: Mapping[str, Any]) -> Mapping[str, Any]:
        """A U-Net, of the width of the text encoder that is there."""
        if "text_encoder" not in configs:
            return {}
        width = configs["text_encoder"].hidden_size
        return {"unet": dataclasses.replace(self.unet, cross_attention_dim=width)}

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
          trained: the U-Net, with float32 weights.
          frozen: VAE and text encoder.
          batch: of square images.
          key: for latents, noise and timesteps.
          schedule: of the model.
        """
        vae, total = frozen["vae"], schedule.num_train_timesteps
        chance = draw_chance(
            vae.config, batch, key, lambda key, count: uniform_timesteps(key, count, total)
        )
        x0 = scaled_latents(vae, batch, chance.latents, self.latents)
        noisy = schedule.add_noise(x0, chance.noise, chance.timesteps)
        context = frozen["text_encoder"](batch.input_ids).last_hidden_state
        grids = self.grids(batch.image.shape[1])
        seen = trained["unet"](noisy, chance.timesteps, context, attention_at=grids)
        noise = noise_loss(
            seen.noise,
            schedule.target(x0, chance.noise, chance.timesteps),
            chance.timesteps,
            schedule,
            min_snr_gamma=self.min_snr_gamma,
        )
        if not grids:
            return noise, {"loss": noise, "noise": noise}
        outside = map_loss(
            seen.attention, batch.token_mask, batch.masks[grids[0]], batch.mask_valid, "mass"
        )
        loss = noise + self.map_weight * outside
        return loss, {"loss": loss, "noise": noise, "map": outside}

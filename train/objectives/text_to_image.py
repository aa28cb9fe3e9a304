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
from train.losses import noise_loss, uniform_timesteps
from train.objectives.diffusion import LatentSource, draw_chance, latent_extras, scaled_latents

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToImage:
    """One term: the noise. How often text is hidden, for guidance, is the run's `drops`."""

    unet: UNetConfig = dataclasses.field(default_factory=UNetConfig.embedded)
    """Of a U-Net that begins afresh."""
    min_snr_gamma: float | None = None
    """Weight the term by min(SNR, gamma)/SNR; 5 in the paper of that name."""
    latents: LatentSource = "vae"
    """Encode the picture at each step, or read the VAE's moments from the record."""

    trained = ("unet",)
    frozen = ("vae", "text_encoder")

    def __post_init__(self):
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0:
            raise UserError(f"objective: min_snr_gamma={self.min_snr_gamma}: expected more than 0")

    @property
    def extras(self) -> tuple[Extra, ...]:
        """Optional fields of the batch that it needs."""
        return latent_extras(self.latents)

    def grids(self, size: int) -> tuple[int, ...]:
        """None: it looks at no masks."""
        return ()

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
        """The noise term alone.

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
        predicted = trained["unet"](noisy, chance.timesteps, context).noise
        noise = noise_loss(
            predicted,
            schedule.target(x0, chance.noise, chance.timesteps),
            chance.timesteps,
            schedule,
            min_snr_gamma=self.min_snr_gamma,
        )
        return noise, {"loss": noise, "noise": noise}

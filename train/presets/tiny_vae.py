"""The embedded default's autoencoder: pictures of 128² to latents of 16², eight channels.

    fmv2 data synth --out RECORDS --count 12000 --size 128 --seed 1
    fmv2 train tiny_vae --data RECORDS --out RUN

Hardware: two CPU cores are enough. Time and result: not measured yet.
"""

from train.config import TrainConfig
from train.objectives.vae import VAE
from train.optimizer import OptimizerConfig
from train.presets.tiny_base import part


def tiny_vae() -> TrainConfig:
    """Begins from nothing."""
    return part(
        VAE(),
        steps=6000,
        batch_size=4,
        optimizer=OptimizerConfig(
            learning_rate=1.5e-3,
            schedule="cosine",
            warmup_steps=200,
            weight_decay=1e-4,
            ema_decay=0.995,
        ),
    )

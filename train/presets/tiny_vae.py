"""The embedded default's autoencoder: pictures of 128² to latents of 16², sixteen channels.

    fmv2 data synth --out RECORDS --count 9000 --size 128 --seed 1 --images-per-identity 6
    fmv2 train tiny_vae --data RECORDS --out RUN

Hardware: one CPU core. Time and result: 21 minutes; 5.6 of 255 is the mean error on eight pictures,
and eyes stay soft. As shipped (4000 steps of 16 on an H200, 2 minutes): 3.8 of 255, on 48 pictures
of people held out.
"""

from train.config import TrainConfig
from train.objectives.vae import VAE
from train.optimizer import OptimizerConfig
from train.presets.tiny_base import part


def tiny_vae() -> TrainConfig:
    """Begins from nothing."""
    return part(
        VAE(),
        steps=2000,
        batch_size=4,
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=1e-2,
            schedule="cosine",
            warmup_steps=50,
            weight_decay=1e-2,
            ema_decay=0.99,
        ),
    )

"""The embedded default's text and image encoder, at 64², from captions, pictures and aligned faces.

    fmv2 train tiny_clip --data RECORDS --out RUN

Records as for tiny_vae. Hardware: one CPU core. Time and result: 18 minutes; nothing measured on
others yet.
"""

from train.config import TrainConfig
from train.objectives.contrastive import Contrastive
from train.optimizer import OptimizerConfig
from train.presets.tiny_base import part


def tiny_clip() -> TrainConfig:
    """Begins from nothing, or goes on from the encoders of its base."""
    return part(
        Contrastive(),
        steps=500,
        batch_size=64,
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            schedule="cosine",
            warmup_steps=50,
            weight_decay=0.05,
            b2=0.98,
            ema_decay=0.99,
        ),
    )

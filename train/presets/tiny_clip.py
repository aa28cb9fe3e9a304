"""The embedded default's text and image encoder, at 64², from captions, pictures and aligned faces.

    fmv2 train tiny_clip --data RECORDS --out RUN

Records as for tiny_vae. Hardware: one CPU core. Time and result: 12 minutes; of the 64
captions of a batch 29 % find their picture at the end of training. As shipped (3000 steps of 128 on
an H200, 2 minutes): of 128 captions of people held out 55 % do.
"""

import dataclasses

from train.config import TrainConfig
from train.objectives.contrastive import Contrastive
from train.optimizer import OptimizerConfig
from train.presets.tiny_base import part


def tiny_clip() -> TrainConfig:
    """Begins from nothing, or goes on from the encoders of its base."""
    config = part(
        Contrastive(),
        steps=400,
        batch_size=64,
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=4e-3,
            vector_rate=0.1,
            schedule="cosine",
            warmup_steps=50,
            weight_decay=0.05,
            ema_decay=0.99,
        ),
    )
    return dataclasses.replace(config, attribute=0.9)

"""The embedded default's U-Net, and its text encoder with it: captions to pictures of 128².

    fmv2 train tiny_unet --data RECORDS --base MODEL --out RUN

Records as for tiny_vae; MODEL holds at least a VAE, and the text encoder of tiny_clip to begin
from. Hardware: two CPU cores are enough. Time and result: not measured yet.
"""

import dataclasses

from data.sample import Drops
from train.config import ReportConfig, TrainConfig
from train.objectives.text_to_image import TextToImage
from train.optimizer import OptimizerConfig
from train.presets.tiny_base import part


def tiny_unet() -> TrainConfig:
    """One caption in ten is hidden, for guidance."""
    config = part(
        TextToImage(min_snr_gamma=5.0),
        steps=6000,
        batch_size=16,
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=2e-3,
            warmup_steps=100,
            weight_decay=1e-2,
            ema_decay=0.999,
        ),
    )
    return dataclasses.replace(
        config,
        drops=Drops(text=0.1, id=0.0, both=0.0, face=0.0),
        report=ReportConfig(validate_every=500, sample_every=1000),
    )

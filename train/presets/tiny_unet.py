"""The embedded default's U-Net: captions to pictures of 128².

    fmv2 train tiny_unet --data RECORDS --base MODEL --out RUN

Records as for tiny_vae; MODEL holds at least the VAE and the text encoder. Hardware: one CPU core.
Time and result: 1400 steps, begun from a U-Net of 1000 steps that predicted the noise, took 46
minutes and draw heads, hats and shirts that hardly follow the prompt; the 6000 were not run yet.
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
        TextToImage(),
        steps=6000,
        batch_size=16,
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=6e-3,
            vector_rate=0.1,
            schedule="wsd",
            warmup_steps=100,
            weight_decay=1e-2,
            ema_decay=0.995,
        ),
    )
    return dataclasses.replace(
        config,
        attribute=0.8,
        drops=Drops(text=0.1, id=0.0, both=0.0, face=0.0),
        report=ReportConfig(validate_every=500, sample_every=1000),
    )

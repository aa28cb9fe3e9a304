"""The embedded default's U-Net: captions to pictures of 128².

    fmv2 train tiny_unet --data RECORDS --base MODEL --out RUN

Records as for tiny_vae; MODEL holds at least the VAE and the text encoder. Hardware: one CPU core.
Time and result: its 6000 steps, at 1.5 s each, were not run. As shipped (5414 steps of 64 on an
H200, 5 minutes; 1000 of 16 on one core with a rate that falls, 30 minutes; both without the map
term; then 5000 of 64 with it on an H200, 3.3 minutes): heads with the hat, hair, lips and clothes
that the prompt names, where its words look (intersection over union 0.30 on people held out, 0.11
without the map term); eyes and thin rims are soft.
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
        TextToImage(map_weight=0.02),
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

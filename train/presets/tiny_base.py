"""The embedded default's base model: its parts, one after another.

    fmv2 data synth --out RECORDS --count 9000 --size 128 --seed 1 --images-per-identity 6
    fmv2 train tiny_base --data RECORDS --out OUT

Each part is a preset of its own, whose header says what it costs; each begins from the model folder
that the part before has left, and adds its nets to it. Hardware: two CPU cores are enough. Time and
result: the parts one after another were not measured. The base that ships had larger batches, four
times the people and a GPU; its model card, fmv2/assets/tiny/README.md, has each command.
"""

from data.sample import Drops
from train.config import Objectives, ReportConfig, TrainConfig
from train.optimizer import OptimizerConfig

PARTS = ("tiny_vae", "tiny_clip", "tiny_unet", "tiny_face", "tiny_coefficients")
"""Presets in their order: the U-Net needs a VAE and a text encoder."""


def part(
    objective: Objectives, *, steps: int, batch_size: int, optimizer: OptimizerConfig
) -> TrainConfig:
    """What all parts have in common: 128², float32, nothing hidden."""
    return TrainConfig(
        steps=steps,
        objective=objective,
        optimizer=optimizer,
        batch_size=batch_size,
        size=128,
        drops=Drops(text=0.0, id=0.0, both=0.0, face=0.0),
        checkpoint_every=500,
        compute="float32",
        report=ReportConfig(validate_every=500, sample_every=0),
    )

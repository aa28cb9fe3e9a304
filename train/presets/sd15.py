"""Face-MakeUpV2 on Stable Diffusion 1.5: the paper's settings with its known defects mended.

    fmv2 train sd15 --data RECORDS --base MODEL --out RUN

Hardware: eight devices of 40 GB or more as in the paper (8 samples each), or any that hold 64
samples per step; `--optimizer.accumulation` makes do with fewer.
Time and result: not measured yet.
"""

from train.config import TrainConfig
from train.objectives.face_makeup import FaceMakeUp
from train.optimizer import OptimizerConfig


def sd15() -> TrainConfig:
    """Mass form of the map loss, identity loss, dropped identities, a running mean of weights."""
    return TrainConfig(
        steps=680_000,
        objective=FaceMakeUp(),
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=1e-2, warmup_steps=500),
        batch_size=64,
        size=512,
        checkpoint_every=2000,
        keep_every=50_000,
        workers=8,
    )

"""The embedded default's face encoder, at 64², from the people of the training split.

    fmv2 train tiny_face --data RECORDS --out RUN

Records as for tiny_vae: 1500 people with eight pictures each. Where there are others,
`--objective.identities` says how many. Hardware: two CPU cores are enough. Time and result: not
measured yet.
"""

from train.config import TrainConfig
from train.objectives.face_encoder import FaceEncoder
from train.optimizer import OptimizerConfig
from train.presets.tiny_base import part


def tiny_face() -> TrainConfig:
    """A margin and scale that a small net from nothing can follow; the paper's are 0.5 and 64.

    No running mean of weights is kept: the norms' statistics are those of the weights themselves.
    """
    return part(
        FaceEncoder(identities=1500, scale=32.0, margin=0.3),
        steps=3000,
        batch_size=32,
        optimizer=OptimizerConfig(
            learning_rate=2e-3,
            schedule="cosine",
            warmup_steps=200,
            weight_decay=0.05,
            ema_decay=None,
        ),
    )

"""The embedded default's face encoder, at 64², from the people of the training split.

    fmv2 train tiny_face --data RECORDS --out RUN

Records as for tiny_vae: 1500 people with six pictures each. Where there are others,
`--objective.identities` says how many. Hardware: one CPU core. Time and result: 25 minutes; on 450
pictures of 75 people held out cosines of 0.18 with themselves and 0.00 with others, and of 24 of
them 42 % are nearest to themselves. As shipped (3000 steps of 64 on an H200, 3 minutes, 5700
people): 0.32, 0.00 and 73 %.
"""

from train.config import TrainConfig
from train.objectives.face_encoder import FaceEncoder
from train.optimizer import OptimizerConfig
from train.presets.tiny_base import part


def tiny_face() -> TrainConfig:
    """No margin, and a scale that a small net from nothing can follow. The paper's are 0.5 and 64;
    at 0.3 and 32, with AdamW at 2e-3, the loss rose for the 300 steps that were watched.

    No running mean of weights is kept: the norms' statistics are those of the weights themselves.
    """
    return part(
        FaceEncoder(identities=1500, scale=16.0, margin=0.0),
        steps=1600,
        batch_size=32,
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=5e-3,
            schedule="cosine",
            warmup_steps=50,
            weight_decay=0.05,
            ema_decay=None,
        ),
    )

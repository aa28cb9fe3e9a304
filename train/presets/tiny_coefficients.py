"""The embedded default's coefficient encoder: the 3D head of a picture of 128².

    fmv2 train tiny_coefficients --data RECORDS --out RUN

Records as for tiny_vae. The camera's crop is the whole picture, as it is in the procedural world.
Hardware: one CPU core. Time and result: 9 minutes; on 450 pictures of 75 people held out pose is
2.9° off and light by 0.14 of itself; of the shape it tells nothing. As shipped (3000 steps on an
H200, a minute): 1.9° and 0.11, and of the shape nothing either.
"""

from train.config import TrainConfig
from train.objectives.coefficients import Coefficients
from train.optimizer import OptimizerConfig
from train.presets.tiny_base import part


def tiny_coefficients() -> TrainConfig:
    """No running mean of weights is kept: the norms' statistics are those of the weights
    themselves."""
    return part(
        Coefficients(),
        steps=1200,
        batch_size=32,
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=5e-3,
            schedule="cosine",
            warmup_steps=50,
            weight_decay=1e-2,
            ema_decay=None,
        ),
    )

"""The embedded default's coefficient encoder: the 3D head of a picture of 128².

    fmv2 train tiny_coefficients --data RECORDS --out RUN

Records as for tiny_vae. The camera's crop is the whole picture, as it is in the procedural world.
Most of a head's shape cannot be told from 128², so that its error stays large whatever is learnt:
where shape weighs more than by default, all else has to as well.
Hardware: two CPU cores, or a GPU. Time and result: from nothing, with these weights, not measured.
As shipped (3000 steps with the weights that are the default, on an H200, a minute; then 1800 of
these at a rate of 3e-3 on the heads of 7125 people, a quarter of an hour on two cores): on pictures
of 375 others pose is 1.9° off and light by 0.11 of itself, and what is told of the head agrees with
the truth to r = 0.84 in the chin's length, 0.79 in the neck's width, 0.68 in the face's length and
0.60 in the jaw's width; before those 1800 steps to 0.13, 0.19, 0.52 and 0.17.
"""

from train.config import TrainConfig
from train.objectives.coefficients import Coefficients
from train.optimizer import OptimizerConfig
from train.presets.tiny_base import part


def tiny_coefficients() -> TrainConfig:
    """No running mean of weights is kept: the norms' statistics are those of the weights
    themselves."""
    return part(
        Coefficients(
            shape_weight=24.0,
            expression_weight=25.0,
            pose_weight=100.0,
            camera_weight=100.0,
            light_weight=25.0,
        ),
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

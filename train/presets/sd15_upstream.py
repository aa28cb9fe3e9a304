"""The published objective on Stable Diffusion 1.5, bit-faithful: for comparing with the original.

    fmv2 train sd15_upstream --data RECORDS --base MODEL --out RUN

Its map loss, its masks shrunk without antialiasing and kept when their text is dropped, no identity
loss, no dropped identities, weight decay on everything, no clipping, no running mean. Master
weights stay float32: that the original loses about half of its updates in bfloat16 is no objective.
Hardware: as sd15. Time and result: not measured yet.
"""

import dataclasses

from data.sample import Drops
from train.config import TrainConfig
from train.objectives.face_makeup import FaceMakeUp
from train.optimizer import OptimizerConfig
from train.presets.sd15 import sd15


def sd15_upstream() -> TrainConfig:
    """As published."""
    return dataclasses.replace(
        sd15(),
        objective=FaceMakeUp(map_loss="upstream", id_weight=0.0),
        optimizer=OptimizerConfig(
            learning_rate=1e-4,
            weight_decay=1e-2,
            decay_all=True,
            clip_norm=None,
            ema_decay=None,
        ),
        drops=Drops(text=0.05, face=0.5, id=0.0, both=0.0, masks="never"),
        mask_resize="bilinear",
    )

"""Face-MakeUpV2 on Stable Diffusion 1.5 with a TPU v5e-256, or any pod.

    fmv2 train sd15_pod --data gs://BUCKET/RECORDS --base MODEL --out gs://BUCKET/RUN

The same command on every host. 16 samples on each of 256 chips; the learning rate grows with the
root of the batch, as is usual for Adam. Blocks are computed again on the way back so that 16 fit
into 16 GB. Time and result: not measured yet.
"""

import dataclasses

from train.config import TrainConfig
from train.optimizer import OptimizerConfig
from train.presets.sd15 import sd15


def sd15_pod() -> TrainConfig:
    """sd15 at 64 times the batch."""
    return dataclasses.replace(
        sd15(),
        optimizer=OptimizerConfig(
            learning_rate=8e-4, weight_decay=1e-2, warmup_steps=2000, schedule="cosine"
        ),
        batch_size=16 * 256,
        steps=20_000,
        checkpoint_every=500,
        keep_every=5000,
        remat=True,
        workers=16,
    )

"""Face-MakeUpV2 on the embedded default: the adapter stage of the tiny model, at 128².

    fmv2 train tiny --data RECORDS --base MODEL --out RUN

Hardware: two CPU cores are enough. Time and result: of the 2000 steps the quickstart makes 520, at
1.0 s each, behind a minute and a half of loading and compiling. People held out, drawn by 8 steps
of DPM-Solver++ with guidance 2: 0.66 of the attributes asked for (true pictures 0.96, base 0.68),
pose 9.6° off (without the shading map 25°, true 3°), cosine with the reference 0.26 (without the
face 0.13, true 0.73). After 540 steps: 0.63, 9.1° and 0.18; after 580: 0.61, 9.0° and 0.18. Seven
runs of 440 steps that differ in little but rounding or the iterations of Muon came to 0.62 to 0.69,
9° to 11°, and 0.18 to 0.29; with five iterations instead of three the noise term was 0.002 to 0.003
lower. True shading maps in the place of estimated ones: 0.21 instead of 0.19, on 48 people. With
batches of 8 and 720 steps: 0.66, 12° and 0.20. Without `spread_weight`, 400 steps: 0.69, 14° and
0.20. With an identity term three times as heavy on samples up to step 500 instead of 250: 0.64, 12°
and 0.213. After 1200 steps: 0.56, 7° and 0.250: the words lose what the face and the map gain.
Sampling by 12 steps and by 10 came to the same as by 8.
"""

from data.sample import Drops
from train.config import ReportConfig, TrainConfig
from train.objectives.face_makeup import FaceMakeUp
from train.optimizer import OptimizerConfig


def tiny() -> TrainConfig:
    """The whole objective; identities by the model's own face encoder."""
    return TrainConfig(
        steps=2000,
        objective=FaceMakeUp(
            map_weight=0.02,
            spread_weight=0.001,
            identity="face_encoder",
            rank=16,
            start="quick",
            timesteps="cubic",
        ),
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=5e-3,
            vector_rate=0.1,
            schedule="wsd",
            warmup_steps=20,
            ema_decay=0.98,
        ),
        drops=Drops(face=0.1),
        batch_size=16,
        size=128,
        checkpoint_every=200,
        compute="float32",
        report=ReportConfig(validate_every=200, sample_every=500),
    )

"""Everything a run depends on, typed: one frozen dataclass, whose presets are functions.

What is here is what the command line takes. It lies in every checkpoint, so that a run is only ever
resumed as what it was.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from data.sample import Drops
from fmv2.errors import UserError
from fmv2.models.attention import AttentionChoice
from fmv2.parallel import HostsConfig, MeshConfig
from train.objectives.coefficients import Coefficients
from train.objectives.contrastive import Contrastive
from train.objectives.face_encoder import FaceEncoder
from train.objectives.face_makeup import FaceMakeUp
from train.objectives.scorer import Scorer
from train.objectives.text_to_image import TextToImage
from train.objectives.vae import VAE
from train.optimizer import OptimizerConfig

Objectives = FaceMakeUp | VAE | TextToImage | Contrastive | FaceEncoder | Coefficients | Scorer

CHANGEABLE = (
    *("data", "out", "base", "steps", "mesh", "hosts", "workers", "report"),
    *("checkpoint_every", "keep_last", "keep_every"),
)
"""Fields that may change when a run is resumed; the dataset's and the base's own fingerprints tell
whether a path still leads to the same thing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What the person sees, and how often, in steps. 0 is never."""

    log_every: int = 10
    validate_every: int = 1000
    """On the validation split, with fixed noise and timesteps and the running mean of weights."""
    validation_batches: int = 8
    sample_every: int = 1000
    """Draw a grid of samples with the attention of their phrases."""
    samples: int = 4
    """Pictures in that grid."""
    profile: tuple[int, int] | None = None
    """First and last step of a trace for TensorBoard's profiler."""
    wandb: str | None = None
    """Project on Weights & Biases to log to as well."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run. Rerunning the same command resumes it."""

    data: str | None = None
    """The records: a folder that `fmv2 data` wrote, or gs://…"""
    out: str | None = None
    """Where checkpoints, metrics and samples go: a folder of its own for each run, or gs://…"""
    base: Path | None = None
    """The model that the run begins from: a folder that `fmv2 convert from-diffusers` wrote. None
    where the objective begins from nothing."""
    steps: int
    """Updates in all, those of resumed runs included."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, in OUT/checkpoints/STEP."""
    keep_last: int = 3
    """Checkpoints kept beside those of `keep_every`."""
    keep_every: int | None = None
    """Steps between checkpoints that are never deleted."""

    objective: Objectives
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    batch_size: int
    """Samples per update, over all devices and micro-batches."""
    size: int = 512
    """Side of the images in pixels, a multiple of 64."""
    drops: Drops = dataclasses.field(default_factory=Drops)
    attribute: float = 0.5
    """Probability that a record's attribute caption is read, and not its emotion caption."""
    flip: float = 0.0
    """Probability that a record is mirrored."""
    mask_resize: Literal["area", "bilinear"] = "area"
    """How masks shrink to a grid: by area, or as published, which loses brows and lips."""
    workers: int = 0
    """Processes per host that decode records; 0 decodes in threads of this one."""
    seed: int = 0
    """Of weights, records' order, drops, noise and timesteps."""

    compute: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the nets' arithmetic and of frozen weights. What learns is float32."""
    remat: bool = False
    """Compute each block's activations again on the way back instead of keeping them."""
    attention: AttentionChoice = "auto"
    """Kernel of long self-attention."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    hosts: HostsConfig = dataclasses.field(default_factory=HostsConfig)
    report: ReportConfig = dataclasses.field(default_factory=ReportConfig)

    def __post_init__(self):
        faults = [
            f"{name}={getattr(self, name)}: expected {least} or more"
            for name, least in (
                ("steps", 1),
                ("checkpoint_every", 1),
                ("keep_last", 1),
                ("batch_size", 1),
                ("workers", 0),
            )
            if getattr(self, name) < least
        ]
        if self.size < 64 or self.size % 64:
            faults.append(f"size={self.size}: expected a multiple of 64, as the U-Net halves it")
        faults += [
            f"{name}={getattr(self, name)}: expected a probability"
            for name in ("attribute", "flip")
            if not 0 <= getattr(self, name) <= 1
        ]
        if self.batch_size % self.optimizer.accumulation:
            faults.append(
                f"batch_size={self.batch_size}: expected a multiple of the "
                f"{self.optimizer.accumulation} micro-batches of optimizer.accumulation"
            )
        if faults:
            raise UserError("; ".join(faults))


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The config as JSON takes it, the objective with its name."""
    fields = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return {**fields, "objective": {"name": type(config.objective).__name__, **fields["objective"]}}


def fixed_fields(config: TrainConfig) -> dict[str, Any]:
    """What must not change while a run lasts."""
    return {name: value for name, value in to_dict(config).items() if name not in CHANGEABLE}

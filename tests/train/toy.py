"""Runs of a net so small that the loop around it is all that takes time."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from convert.folder import Model, write
from fmv2.inputs import image_input, resize
from fmv2.models.arcface import ArcFaceConfig
from tests.random_model import stable_diffusion
from tests.train.small import IMAGE_SIZE, SCHEDULER, write_records
from train.config import ReportConfig, TrainConfig
from train.optimizer import OptimizerConfig

ARCFACE = ArcFaceConfig(layers=(1, 1, 1, 1), widths=(2, 2, 2, 2), embedding_size=8, image_size=16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy:
    """A face encoder learns noisy numbers; it has batch norms, and so running statistics."""

    poison: int | None = None
    """A record whose loss is no number."""

    trained = ("face_encoder",)
    frozen = ()
    extras = ()

    def grids(self, size: int) -> tuple[int, ...]:
        return ()

    def fresh(self, configs: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"face_encoder": ARCFACE}

    def loss(self, trained, frozen, batch, key, schedule):
        faces = resize(image_input(batch.face), ARCFACE.image_size)
        found = trained["face_encoder"](faces)
        wanted = batch.face_id[:, :8] + jax.random.normal(key, found.shape)
        loss = jnp.mean((found - wanted) ** 2)
        if self.poison is not None:
            loss = jnp.where((batch.index == self.poison).any(), jnp.nan, loss)
        return loss, {"loss": loss, "error": jnp.sqrt(loss)}


def write_inputs(folder: Path) -> tuple[Path, Path]:
    """Records, and a base that has nothing but a tokenizer and a schedule yet."""
    tokenizer = folder / "tokenizer"
    stable_diffusion().tokenizer.save_pretrained(tokenizer)
    files = {path.name: path.read_bytes() for path in tokenizer.iterdir()}
    write(Model(tokenizer=files, scheduler=SCHEDULER), folder / "base")
    return write_records(folder / "data", folder / "base"), folder / "base"


def toy_run(data: Path, base: Path, out: Path, **fields) -> TrainConfig:
    """Six steps of eight samples, a checkpoint after every second; only losses are reported."""
    run = TrainConfig(
        data=str(data),
        out=str(out),
        base=base,
        steps=6,
        checkpoint_every=2,
        objective=Toy(),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(learning_rate=1e-2),
        batch_size=8,
        size=IMAGE_SIZE,
        compute="float32",
        report=ReportConfig(log_every=1, validate_every=0, sample_every=0),
    )
    return dataclasses.replace(run, **fields)

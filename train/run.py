"""A run made ready: records, nets, state and step, all in their places."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from convert.folder import Assembly
from data.dataset import Dataset
from data.loader import Loader, LoaderConfig
from data.sample import Drops
from data.schema import Batch
from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.parallel import batch_sharding, shardings
from fmv2.tokens import Tokens
from train.abstract import face_size, initial_state, jit_step
from train.checks import check
from train.config import TrainConfig
from train.nets import Nets, Shapes, load
from train.step import Metrics, TrainState, split

TRAIN, VALIDATION = "train", "validation"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What a loop works with."""

    config: TrainConfig
    mesh: Mesh
    dataset: Dataset
    tokens: Tokens
    base: Assembly | None
    shapes: Shapes
    graph: Any
    """Structure of the trained nets."""
    frozen: Nets
    resumes_at: int | None
    """Step of the checkpoint to go on from."""
    step: Callable[[TrainState, Nets, Batch], tuple[TrainState, Metrics]]

    @property
    def schedule(self) -> NoiseSchedule:
        return self.shapes.schedule

    def loader(self, split: str = TRAIN) -> Loader:
        """Batches of a split. Those of validation are always the same and hide nothing."""
        config = self.config
        validates = split == VALIDATION
        settings = LoaderConfig(
            batch_size=config.batch_size,
            size=config.size,
            seed=0 if validates else config.seed,
            mask_grids=config.objective.grids(config.size),
            mask_resize=config.mask_resize,
            face_size=face_size(self.shapes),
            drops=Drops(text=0, id=0, both=0, face=0) if validates else config.drops,
            attribute=config.attribute,
            flip=0.0 if validates else config.flip,
            extras=config.objective.extras,
            workers=0 if validates else config.workers,
        )
        return Loader(
            self.dataset,
            split,
            self.tokens,
            settings,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            sharding=batch_sharding(self.mesh),
        )


def prepare(config: TrainConfig, console: Console) -> tuple[Run, TrainState]:
    """Everything checked and loaded, and the state before the first step.

    Raises:
      UserError: data set, tokenizer, base and config do not go together.
    """
    inputs = check(config)
    mesh, base, shapes = inputs.mesh, inputs.base, inputs.shapes
    start = time.monotonic()
    with console.status(f"reading {config.base}"):
        trained, frozen = load(config, base, mesh)
    graph = split(trained)[0]
    abstract = jax.eval_shape(partial(initial_state, config), trained)
    placed = shardings(abstract, mesh)
    state = jax.jit(partial(initial_state, config), out_shardings=placed)(trained)
    console.print(f"nets ready in {time.monotonic() - start:.0f} s on {mesh.shape}")
    run = Run(
        config=config,
        mesh=mesh,
        dataset=inputs.dataset,
        tokens=inputs.tokens,
        base=base,
        shapes=shapes,
        graph=graph,
        frozen=frozen,
        resumes_at=inputs.newest,
        step=jit_step(config, graph, shapes.schedule, state, mesh),
    )
    return run, state

"""A run made ready: records, nets, state and step, all in their places."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console

from convert.folder import Assembly
from data.dataset import Dataset, open_dataset
from data.loader import Loader, LoaderConfig
from data.sample import Drops
from data.schema import Batch
from data.tokens import EMBEDDED, Tokens
from fmv2.diffusion.schedule import NoiseSchedule
from fmv2.errors import UserError
from fmv2.parallel import (
    agree,
    batch_sharding,
    batch_ways,
    initialize_distributed,
    make_mesh,
    shardings,
)
from train.abstract import face_size, initial_state, jit_step
from train.config import TrainConfig, to_dict
from train.nets import Nets, Shapes, describe, load, open_base
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
    if config.data is None or config.out is None:
        raise UserError("a run needs --data and --out")
    initialize_distributed(config.hosts)
    mesh = make_mesh(config.mesh, jax.devices())
    check_batch(config, mesh)
    dataset = open_dataset(config.data)
    base = None if config.base is None else open_base(config.base)
    tokens = Tokens.load(EMBEDDED if base is None else base.tokenizer)
    dataset.check_tokenizer(tokens)
    shapes = Shapes.of(base).completed(config.objective)
    describe(config, shapes)
    agree(_whole_fingerprint(config, dataset))

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
        dataset=dataset,
        tokens=tokens,
        base=base,
        shapes=shapes,
        graph=graph,
        frozen=frozen,
        step=jit_step(config, graph, shapes.schedule, state, mesh),
    )
    return run, state


def check_batch(config: TrainConfig, mesh: Mesh) -> None:
    """Raises a UserError unless the batch divides among the devices."""
    ways, unit = batch_ways(mesh), sample_unit(config)
    micro = config.batch_size // config.optimizer.accumulation
    if micro % (ways * unit):
        raise UserError(
            f"{micro} samples per micro-batch do not divide among {ways} devices"
            + (f", one sample in {unit} decoded for the identity" if unit > 1 else "")
            + f": make --batch-size a multiple of {ways * unit * config.optimizer.accumulation}"
        )


def sample_unit(config: TrainConfig) -> int:
    """Samples of which one is decoded for the identity term; 1 without that term."""
    every = getattr(config.objective, "id_every", 1)
    return every if getattr(config.objective, "id_weight", 0) else 1


def _whole_fingerprint(config: TrainConfig, dataset: Dataset) -> str:
    """Of what all hosts must have alike; where each finds its files is its own affair."""
    own = ("data", "out", "base", "hosts", "workers", "report")
    alike = {name: value for name, value in to_dict(config).items() if name not in own}
    alike |= {"splits": dict(dataset.splits), "tokenizer": dataset.tokenizer}
    return hashlib.sha256(json.dumps(alike, sort_keys=True).encode()).hexdigest()


def fingerprint(nets: Nets) -> str:
    """Of all weights, whatever their sharding: sums of their bits, each times its place."""

    @jax.jit
    def sums(leaves):
        def one(x):
            bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
            place = jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape)
            return jnp.sum(bits.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)

        return [one(x) for x in leaves]

    paths = jax.tree_util.tree_leaves_with_path(nets)
    values = jax.device_get(sums([x for _, x in paths]))
    digest = hashlib.sha256()
    for (path, x), value in zip(paths, values, strict=True):
        digest.update(f"{jax.tree_util.keystr(path)} {x.shape} {x.dtype} {value}\n".encode())
    return digest.hexdigest()

"""A training run's folder: which checkpoints it has, and what the nets of one weigh.

`train.checkpoint` writes them with Orbax; here they are only read, array by array.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from convert import kinds
from convert.components import COMPONENTS
from convert.engine import TensorRef
from convert.kinds import EMBEDDED, Part, Source
from convert.rules import Table
from convert.sources import Tensors
from fmv2.errors import UserError
from fmv2.models.arcface import ArcFaceConfig

CHECKPOINTS = "checkpoints"
"""In the run's folder; below it one folder per step."""

STATE, LOADER, CONFIG, INPUTS, NETS = "state", "loader", "config", "inputs", "nets"
"""What a checkpoint holds: arrays by dotted path, and JSON."""


def checkpoints(run: epath.PathLike) -> epath.Path:
    """Where a run's checkpoints are, as an absolute path: Orbax takes no other."""
    folder = epath.Path(run)
    return (folder if folder.is_absolute() else epath.Path(Path.cwd()) / folder) / CHECKPOINTS


def is_run(path: epath.PathLike) -> bool:
    """Whether a training run wrote into this folder."""
    return checkpoints(path).is_dir()


def identify(path: Path) -> Source:
    """What the path is: a run's folder, whose newest checkpoint is meant, or weights.

    Raises:
      UserError: it cannot serve; see `convert.kinds.identify`.
    """
    return source(path) if is_run(path) else kinds.identify(path)


def steps(run: epath.PathLike) -> list[int]:
    """Those that have a checkpoint, oldest first; what is half-written does not count."""
    from orbax.checkpoint.path import step as step_paths  # takes a second, as all of Orbax

    folder = checkpoints(run)
    return sorted(step_paths.checkpoint_steps(folder)) if folder.is_dir() else []


def choose(run: epath.PathLike, step: int | None = None) -> int:
    """The step asked for, or the newest.

    Raises:
      UserError: there is no such checkpoint.
    """
    there = steps(run)
    if not there:
        raise UserError(f"{run}: this training run has no checkpoint yet")
    if step is not None and step not in there:
        raise UserError(f"{run}: no checkpoint of step {step}: there are {there}")
    return there[-1] if step is None else step


def read_json(run: epath.PathLike, step: int, item: str) -> dict[str, Any]:
    """CONFIG, INPUTS, LOADER or NETS of a checkpoint."""
    path = checkpoints(run) / str(step) / item / "metadata"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the checkpoint is damaged: {error}") from error


def describe(configs: Mapping[str, Any]) -> dict[str, Any]:
    """The shapes of nets, by component, as `source` finds them under NETS."""
    return {
        name: config.to_config() if hasattr(config, "to_config") else dataclasses.asdict(config)
        for name, config in configs.items()
    }


def source(run: Path, *, step: int | None = None, raw: bool = False) -> Source:
    """The nets that a run has trained, under their torch names; tokenizer and schedule too where it
    began without a base.

    Args:
      step: of the checkpoint; the newest by default.
      raw: the weights themselves; else their running mean, where the run keeps one.
    Raises:
      UserError: there is no such checkpoint.
    """
    step = choose(run, step)
    folder = checkpoints(run) / str(step) / STATE
    shapes = _shapes(folder)
    averaged = not raw and any(name.startswith("ema.") for name in shapes)
    groups = ("ema." if averaged else "params.", "stats.")
    parts = {}
    for name, config in read_json(run, step, NETS).items():
        if name not in COMPONENTS:  # of use in training alone, see `train.heads`
            continue
        leaves = _leaves(shapes, groups, name)
        tensors = _under_torch_names(folder, leaves, shapes, _table(name, config))
        # Adapter and ArcFace have no config.json: their shapes are all in their tensors.
        stated = None if name in ("adapter", "face_encoder") else config
        parts[name] = Part(tensors, stated)
    if not parts:
        trained = ", ".join(read_json(run, step, NETS))
        raise UserError(
            f"{run}: trained {trained}, which is no part of a model folder: a scorer has its own,"
            " see fmv2 convert to-scorer"
        )
    weights = "running mean of the weights" if averaged else "weights as they are"
    base = EMBEDDED if read_json(run, step, CONFIG)["base"] is None else None
    return Source(run, f"training run, step {step}, {weights}", parts, base)


def arrays(run: Path, name: str, *, step: int | None = None) -> dict[str, np.ndarray]:
    """The weights as they are and the running statistics of one net that a run has trained, by
    their paths in the net. It may be one that is in no model folder, see `train.heads`.

    Raises:
      UserError: there is no such checkpoint, or no such net in it.
    """
    step = choose(run, step)
    nets = read_json(run, step, NETS)
    if name not in nets:
        raise UserError(f"{run}: this run trains no {name}, but {', '.join(nets)}")
    folder = checkpoints(run) / str(step) / STATE
    leaves = _leaves(_shapes(folder), ("params.", "stats."), name)
    held = _Arrays(folder, tuple(leaves.values()))
    return {leaf: held.take(path) for leaf, path in leaves.items()}


def base_of(run: Path, step: int | None = None) -> Path | None:
    """The model folder that a run began from, where it was then; None where it had none."""
    base = read_json(run, choose(run, step), CONFIG)["base"]
    return None if base is None else Path(base)


def _shapes(folder: epath.Path) -> dict[str, jax.ShapeDtypeStruct]:
    import orbax.checkpoint as ocp

    metadata = ocp.PyTreeCheckpointHandler().metadata(folder)
    return {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for name, array in metadata.tree.items()
    }


def _leaves(names: Iterable[str], groups: Iterable[str], net: str) -> dict[str, str]:
    """Of a net's paths in these groups of a checkpoint, those in the checkpoint."""
    return {
        path.removeprefix(prefix): path
        for group in groups
        for path in names
        if path.startswith(prefix := f"{group}{net}.")
    }


def _under_torch_names(
    folder: epath.Path,
    leaves: Mapping[str, str],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    table: Table,
) -> Tensors:
    tensors, arrays = {}, _Arrays(folder, tuple(leaves.values()))
    for leaf, path in leaves.items():
        ((key, rule),) = table.to_torch(leaf)

        def read(path=path, to_torch=rule.layout.to_torch) -> np.ndarray:
            return to_torch(arrays.take(path))

        shape = jax.eval_shape(rule.layout.to_torch, shapes[path]).shape
        tensors[key] = TensorRef(shape, np.dtype(shapes[path].dtype), read)
    return tensors


class _Arrays:
    """One net's arrays of a checkpoint, whatever they were sharded over.

    Orbax reads its index, which is long, for each request: so all are read with the first, and let
    go as they are taken.
    """

    def __init__(self, folder: epath.Path, paths: tuple[str, ...]):
        self._folder = folder
        self._paths = paths
        self._read: dict[str, np.ndarray] = {}

    def take(self, path: str) -> np.ndarray:
        if path not in self._read:
            import orbax.checkpoint as ocp

            args = ocp.args.PyTreeRestore(
                item=dict.fromkeys(self._paths, 0),
                restore_args={
                    path: ocp.RestoreArgs(restore_type=np.ndarray) for path in self._paths
                },
                partial_restore=True,
            )
            self._read = ocp.PyTreeCheckpointHandler().restore(self._folder, args=args)
        return self._read.pop(path)


def _table(name: str, config: Mapping[str, Any]) -> Table:
    """The weight table of a net of this shape."""
    component = COMPONENTS[name]
    if name in ("adapter", "coefficient_encoder"):  # one table for all
        return component.table(None)
    if name == "face_encoder":
        sizes: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in config.items()
        }
        return component.table(ArcFaceConfig(**sizes))
    return component.table(component.shape(Part({}, config), None))

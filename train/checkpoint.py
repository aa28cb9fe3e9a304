"""Checkpoints of a run, under OUT/checkpoints/STEP: Orbax writes them while training goes on.

Each holds the whole `TrainState`, where the loader was, the config, and what the run read. A folder
has its name only when all of it is written, so that a killed run finds whole ones or none. The
arrays lie in one flat dictionary by dotted paths ("ema.adapter.image_proj.norm.scale"), which
`convert.runs` reads, and are restored into whatever sharding the resumed run wants.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from convert import runs
from convert.runs import CONFIG, INPUTS, LOADER, NETS, STATE
from fmv2.errors import UserError
from train.step import TrainState

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """What a checkpoint tells of its run, beside the state."""

    config: Json
    """As `train.config.to_dict` gives it."""
    inputs: Json
    """Fingerprints of what the run reads: dataset, tokenizer and base."""
    nets: Json
    """Shapes of what it trains, from `convert.runs.describe`."""


class Checkpoints:
    """Those of one run. Close it, or use it in a `with` block: only then is all written."""

    def __init__(self, out: epath.PathLike, keep_last: int, keep_every: int | None = None):
        """
        Args:
          out: the run's folder, local or `gs://`.
          keep_last: so many of the newest are kept,
          keep_every: and those of every so many steps.
        Raises:
          UserError: the folder cannot be written to.
        """
        # Orbax logs what fails once per thread, with tracebacks: here it is said once, in a line.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.path = runs.checkpoints(out)
        policies: list[Any] = [checkpoint_managers.LatestN(keep_last)]
        if keep_every is not None:
            policies.append(checkpoint_managers.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        with self._plainly():
            self._manager = ocp.CheckpointManager(self.path, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            self.close()
        else:  # what is being written is still finished, and may not hide what went wrong
            with contextlib.suppress(Exception):
                self._manager.close()

    def steps(self) -> list[int]:
        """Of all checkpoints that are whole, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, loader: bytes, about: About) -> None:
        """Copies the state off the devices and returns; it is written in the background.

        Args:
          step: updates made; nothing is done where its checkpoint is there already.
          state: may be donated as soon as this returns.
          loader: from `data.loader.Loader.state`.
          about: the same in all checkpoints of a run.
        Raises:
          UserError: this one, or the one before, cannot be written.
        """
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            **{
                STATE: ocp.args.StandardSave(flat(state)),
                LOADER: ocp.args.JsonSave(json.loads(loader)),
                CONFIG: ocp.args.JsonSave(about.config),
                INPUTS: ocp.args.JsonSave(about.inputs),
                NETS: ocp.args.JsonSave(about.nets),
            }
        )
        with self._plainly():
            self._manager.save(step, args=items, force=True)

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, bytes]:
        """The state of a step and the loader's, whatever mesh they were saved from.

        Args:
          like: gives shapes and shardings. Its arrays are deleted first, so that the devices never
            hold two states.
        """
        leaves, treedef = jax.tree.flatten(like)
        wanted = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            for name, x in flat(like).items()
        }
        for leaf in leaves:
            leaf.delete()
        args = {STATE: ocp.args.StandardRestore(wanted), LOADER: ocp.args.JsonRestore()}
        found = self._manager.restore(step, args=ocp.args.Composite(**args))
        arrays = found[STATE] | {"key": jax.random.wrap_key_data(found[STATE]["key"])}
        state = jax.tree.unflatten(treedef, [arrays[name] for name in flat(like, data=False)])
        return state, json.dumps(found[LOADER]).encode()

    def wait(self) -> None:
        """Until all is written.

        Raises:
          UserError: it cannot be written.
        """
        with self._plainly():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """The same, and ends Orbax' threads."""
        with self._plainly():
            self._manager.close()

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        """What the file system refuses, in a line."""
        try:
            yield
        except Exception as error:  # the writer's threads raise ValueError for the system's errors
            text = str(error)
            if not isinstance(error, OSError) and "os_error_code" not in text:
                raise
            full = "No space left" in text or "quota exceeded" in text.lower()
            mend = (
                "make room and rerun the same command"
                if full
                else "see to the folder and rerun the same command"
            )
            # On disk: the manager has forgotten already what it would have deleted next.
            steps = runs.steps(self.path.parent)
            last = f"that of step {steps[-1]} is whole" if steps else "there is none before it"
            raise UserError(
                f"{self.path}: the checkpoint cannot be written:"
                f" {'no space left on the device' if full else text}; {last}: {mend}"
            ) from error


def flat(state: TrainState, *, data: bool = True) -> dict[str, Any]:
    """The state's arrays by dotted path, in the tree's order.

    Args:
      data: give the key as the numbers that it is made of.
    """
    found = {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    return found | {"key": jax.random.key_data(found["key"])} if data else found


def digest(state: TrainState) -> str:
    """sha256 over all bytes of the state, whatever its sharding; every host must call it."""
    found = hashlib.sha256()
    for name, array in flat(state).items():
        whole = (
            np.asarray(array)
            if array.is_fully_addressable or array.is_fully_replicated
            else np.asarray(multihost_utils.process_allgather(array, tiled=True))
        )
        found.update(f"{name} {whole.shape} {whole.dtype}\n".encode())
        found.update(np.ascontiguousarray(whole).view(np.uint8).data)
    return found.hexdigest()


def good(state: TrainState) -> TrainState:
    """The same, ready to go on after a step that was not finite."""
    return dataclasses.replace(state, ok=jax.tree.map(jnp.ones_like, state.ok))

"""All that can be refused before anything is computed, in one error."""

import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
from etils import epath
from jax.sharding import Mesh

from convert import runs
from convert.folder import Assembly
from data.dataset import Dataset, open_dataset
from data.encoded import check_vae
from fmv2.errors import UserError
from fmv2.parallel import agree, batch_ways, initialize_distributed, make_mesh
from fmv2.tokens import EMBEDDED, Tokens
from train.config import CHANGEABLE, TrainConfig, fixed_fields, to_dict
from train.nets import Shapes, describe, open_base

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """What a run works with, opened and found to go together."""

    mesh: Mesh
    dataset: Dataset
    tokens: Tokens
    base: Assembly | None
    """None for an objective that begins from nothing."""
    shapes: Shapes
    newest: int | None
    """Step of the checkpoint that the run will resume from."""


def check(config: TrainConfig) -> Inputs:
    """Opens what the config names; nothing is computed, and no weight read but the VAE's where the
    records must have been encoded by it.

    Raises:
      UserError: why the run cannot be; all faults are named.
    """
    initialize_distributed(config.hosts)
    faults = []

    def attempt(make: Callable[..., T], *args: Any) -> T | None:
        """None where it fails, or where what it needs has failed."""
        if any(arg is None for arg in args):
            return None
        try:
            return make(*args)
        except UserError as error:
            faults.append(str(error))
        return None

    needed: dict[str, Any] = {"--data": config.data, "--out": config.out}
    if config.objective.frozen:
        needed["--base"] = config.base
    if missing := [flag for flag, value in needed.items() if value is None]:
        faults.append(f"{', '.join(missing)} missing: this run needs {', '.join(needed)}")
    mesh = attempt(make_mesh, config.mesh, jax.devices())
    attempt(check_batch, config, mesh)
    dataset = attempt(open_dataset, config.data)
    base = attempt(open_base, config.base)
    tokenizer = None if base is None else base.tokenizer
    tokens = attempt(Tokens.load, EMBEDDED if config.base is None else tokenizer)
    if dataset is not None:
        attempt(dataset.check_tokenizer, tokens)
    if "latent_moments" in config.objective.extras:
        attempt(check_vae, dataset, base, config.size)
    lacking = base is None and (config.base is not None or "--base" in needed)
    shapes = None if lacking else attempt(_shapes, config, [base])
    newest = attempt(_newest, config, config.out)
    if newest and dataset is not None and tokens is not None:
        attempt(check_inputs, config, newest, fingerprints(dataset, tokens))
    if config.report.wandb and importlib.util.find_spec("wandb") is None:
        faults.append("--report.wandb needs Weights & Biases: pip install wandb")
    if faults:
        raise UserError("; ".join(faults))
    assert mesh is not None
    assert dataset is not None
    assert tokens is not None
    assert shapes is not None
    agree(_alike(config, dataset, newest))
    return Inputs(
        mesh=mesh, dataset=dataset, tokens=tokens, base=base, shapes=shapes, newest=newest or None
    )


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


def fingerprints(dataset: Dataset, tokens: Tokens) -> dict[str, str]:
    """Of what a run reads, wherever it lies."""
    return {"dataset": dataset.fingerprint, "tokenizer": tokens.fingerprint}


def check_inputs(config: TrainConfig, step: int, found: Mapping[str, str]) -> None:
    """Raises a UserError where the run of the checkpoint read something else.

    Args:
      found: some of the fingerprints that it was saved with.
    """
    assert config.out is not None
    saved = runs.read_json(config.out, step, runs.INPUTS)
    flags = {"dataset": "--data", "tokenizer": "--base or --data", "base": "--base"}
    other = [
        f"the {name} was {saved.get(name, 'none')[:12]}, is {value[:12]}"
        f" (see {flags[name]} {'' if name == 'tokenizer' else getattr(config, flags[name][2:])})"
        for name, value in found.items()
        if saved.get(name) != value
    ]
    if other:
        raise UserError(
            f"{config.out}: its run read something else: {'; '.join(other)}:"
            " name what it was begun with, or another --out"
        )


def _shapes(config: TrainConfig, base: list[Assembly | None]) -> Shapes:
    shapes = Shapes.of(base[0]).completed(config.objective)
    describe(config, shapes)
    return shapes


def _newest(config: TrainConfig, out: epath.PathLike) -> int:
    """Step of the newest checkpoint there, 0 for none."""
    if epath.Path(out).exists() and not epath.Path(out).is_dir():
        raise UserError(f"{out}: not a folder: name another --out")
    steps = runs.steps(out)
    if not steps:
        return 0
    saved = runs.read_json(out, steps[-1], runs.CONFIG)
    was = {name: value for name, value in saved.items() if name not in CHANGEABLE}
    differences = list(_differences("", was, fixed_fields(config)))
    if differences:
        raise UserError(
            f"{out}: holds a run of another config, {'; '.join(differences)}:"
            " name another --out, or rerun with its own settings"
        )
    return steps[-1]


def _differences(name: str, was: Any, now: Any) -> Iterator[str]:
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for inner in sorted(was.keys() | now.keys()):
            yield from _differences(f"{name}.{inner}", was.get(inner), now.get(inner))
    elif was != now:
        yield f"{name.removeprefix('.')}: was {was}, is {now}"


def _alike(config: TrainConfig, dataset: Dataset, newest: int | None) -> str:
    """Of what all hosts must have alike; where each finds its files is its own affair."""
    own = ("data", "out", "base", "hosts", "workers", "report")
    alike = {name: value for name, value in to_dict(config).items() if name not in own}
    alike |= {"dataset": dataset.fingerprint, "newest": newest}
    return hashlib.sha256(json.dumps(alike, sort_keys=True).encode()).hexdigest()

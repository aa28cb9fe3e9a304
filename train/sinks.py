"""Where a run's numbers and pictures go: metrics.jsonl, TensorBoard, Weights & Biases."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from etils import epath
from PIL import Image

from fmv2.errors import UserError
from train.config import TrainConfig, to_dict


class Sink(Protocol):
    """One of them."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at a step, by name."""
        ...

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture at a step, (h, w, 3) bytes."""
        ...

    def close(self) -> None:
        """All is written then."""
        ...


def open_sinks(config: TrainConfig, first: int) -> list[Sink]:
    """All that the config asks for.

    Args:
      first: steps made before; what is there of later ones, by a run that was killed, is dropped.
    Raises:
      UserError: one of them cannot be written to.
    """
    assert config.out is not None
    out = epath.Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        sinks: list[Sink] = [Lines(out, first), TensorBoard(out / "tensorboard", first)]
    except OSError as error:
        raise UserError(f"{out}: cannot be written to: {error}: name another --out") from error
    return [*sinks, WandB(config)] if config.report.wandb else sinks


class Lines:
    """OUT/metrics.jsonl, one object per line, and OUT/samples/STEP.png.

    A bucket takes no appended lines: there each start of a run has a file of its own.
    """

    def __init__(self, out: epath.Path, first: int):
        self._out = out
        if "://" in str(out):
            self._file = (out / f"metrics-{first}.jsonl").open("w")
            return
        path = out / "metrics.jsonl"
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= first]
        unfinished = out / ".metrics.jsonl"
        unfinished.write_text("".join(kept))
        unfinished.replace(path)
        self._file = path.open("a")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See Sink."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """See Sink."""
        folder = self._out / name
        folder.mkdir(exist_ok=True)
        with (folder / f"{step}.png").open("wb") as file:
            Image.fromarray(pixels).save(file, "PNG")

    def close(self) -> None:
        """See Sink."""
        self._file.close()


class TensorBoard:
    """OUT/tensorboard."""

    def __init__(self, folder: epath.Path, first: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(os.fspath(folder), purge_step=first + 1 if first else None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See Sink."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """See Sink."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """See Sink."""
        self._writer.close()


class WandB:
    """A project on Weights & Biases; a run that resumes goes on there as well."""

    def __init__(self, config: TrainConfig):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError("--report.wandb needs Weights & Biases: pip install wandb") from error
        self._wandb = wandb
        self._run = wandb.init(
            project=config.report.wandb,
            dir=config.out,
            id=hashlib.sha256(str(config.out).encode()).hexdigest()[:16],
            resume="allow",
            config=to_dict(config),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See Sink."""
        self._run.log(dict(values), step=step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """See Sink."""
        self._run.log({name: self._wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        """See Sink."""
        self._run.finish()


def _whole_lines(path: epath.Path) -> list[str]:
    """Those that were written to their end."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]

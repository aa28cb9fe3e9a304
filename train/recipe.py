"""How a base model came about, for its model card: read off the runs, nothing typed in by hand."""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

import fmv2
from convert import runs

_VALIDATION = "validation/"


def recipe(folders: Iterable[Path], command: str) -> str:
    """A section in Markdown: of each run its settings, its time and its last validation.

    Args:
      folders: of runs that are done.
      command: that made them all.
    """
    rows = "\n".join(_row(folder) for folder in folders)
    return f"""
## How it was trained

```sh
{command}
```

fmv2 {fmv2.__version__}, JAX {jax.__version__}, on {_machine()}. Time is that of training steps
alone, whatever else the machine was doing.

| part | trained | steps × batch | learning rate | seed | hours | on held-out people |
| --- | --- | ---: | ---: | ---: | ---: | --- |
{rows}
"""


def _row(folder: Path) -> str:
    step = runs.choose(folder)
    config = runs.read_json(folder, step, runs.CONFIG)
    trained = ", ".join(runs.read_json(folder, step, runs.NETS))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    optimizer = config["optimizer"]
    cells = (
        f"`{folder.name}`",
        trained.replace("_", " "),
        f"{step} × {config['batch_size']}",
        f"{optimizer['learning_rate']:g} {optimizer['schedule']}",
        str(config["seed"]),
        f"{_seconds(lines) / 3600:.2f}",
        _validation(lines),
    )
    return f"| {' | '.join(cells)} |"


def _seconds(lines: Iterable[Mapping[str, Any]]) -> float:
    """Of all steps: each line is the mean of those since the line before."""
    seconds, before = 0.0, 0
    for line in lines:
        if "seconds_per_step" in line:
            seconds += (line["step"] - before) * line["seconds_per_step"]
            before = line["step"]
    return seconds


def _validation(lines: list[Mapping[str, Any]]) -> str:
    last = next((line for line in reversed(lines) if any(_VALIDATION in k for k in line)), {})
    figures = {k.removeprefix(_VALIDATION): v for k, v in last.items() if k.startswith(_VALIDATION)}
    return ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in figures.items())


def _machine() -> str:
    kind = jax.devices()[0].device_kind
    if kind == "cpu":
        return f"{os.cpu_count()} cores of a {platform.machine()} processor"
    return f"{jax.device_count()} × {kind}"

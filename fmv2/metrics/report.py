"""What was measured, as typed figures, and the two files that tell of them.

    report.json    every figure with its interval and what stands beside it
    report.md      the same for people, written from the figures alone

A figure without controls says little: beside it stand the same measure with something taken away,
that of the true pictures (the floor of the scorer itself), and that of pairs at random.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fmv2.errors import UserError
from fmv2.metrics.estimate import LEVEL, Estimate, exact

JSON_FILE, TEXT_FILE = "report.json", "report.md"

FLOOR, RANDOM = "true pictures", "at random"
"""What these two are called beside a figure."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demand:
    """What must hold of a figure: that it is better than another, or than a number."""

    than: str | float
    """A control by its name, FLOOR or RANDOM; or the number itself."""
    times: float = 1.0
    """The other one is multiplied by it first."""
    clearly: bool = False
    """The two intervals must not touch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """One measure."""

    group: str
    """The table that it stands in: identity, shading, text."""
    name: str
    meaning: str
    """What it is and how it was taken, in a sentence or two."""
    better: Literal["higher", "lower"]
    value: Estimate
    unit: str = ""
    digits: int = 3
    """After the point, where people read it."""
    controls: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)
    """The same measure of other pictures, by what was done otherwise."""
    floor: Estimate | None = None
    """Of the true pictures."""
    random: Estimate | None = None
    """Of pairs at random, or by chance."""
    demands: tuple[Demand, ...] = ()

    def __post_init__(self):
        named = [demand.than for demand in self.demands if isinstance(demand.than, str)]
        if unknown := [name for name in named if name not in self.beside()]:
            raise ValueError(f"{self.name}: nothing beside it is called {', '.join(unknown)}")

    def beside(self) -> dict[str, Estimate]:
        """All that it can be compared with."""
        ends = {FLOOR: self.floor, RANDOM: self.random}
        return {**self.controls, **{name: x for name, x in ends.items() if x is not None}}

    def holds(self, demand: Demand) -> bool:
        """Whether it is so."""
        if isinstance(demand.than, str):
            other = self.beside()[demand.than]
        else:
            other = exact(demand.than, self.value.count)
        mine, times = self.value, demand.times
        if self.better == "higher":
            if demand.clearly:
                return mine.low > times * other.high
            return mine.value >= times * other.value
        if demand.clearly:
            return mine.high < times * other.low
        return mine.value <= times * other.value

    def words(self, demand: Demand) -> str:
        """What is demanded, to be read after "is"."""
        if demand.clearly:
            bound = "clearly above" if self.better == "higher" else "clearly below"
        else:
            bound = "at least" if self.better == "higher" else "at most"
        other = demand.than if isinstance(demand.than, str) else self._number(demand.than)
        times = "" if demand.times == 1 else f"{demand.times:g} × "
        return f"{bound} {times}{other}"

    def _number(self, value: float) -> str:
        return f"{value:.{self.digits}f}"

    def cell(self, x: Estimate | None) -> str:
        """A figure as a table has it."""
        if x is None:
            return ""
        if x.low == x.high:
            return self._number(x.value)
        if math.isinf(x.low):
            return f"{self._number(x.value)} (one person)"
        return f"{self._number(x.value)} [{self._number(x.low)}, {self._number(x.high)}]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """All figures of a run, and what they were taken of."""

    title: str
    about: Mapping[str, Any]
    """What the figures depend on: seeds, steps, device, seconds; as JSON takes it."""
    figures: Sequence[Figure]

    def to_json(self) -> dict[str, Any]:
        """As JSON takes it; an interval without bounds is null."""
        return {
            "title": self.title,
            "about": dict(self.about),
            "level": LEVEL,
            "figures": [_figure(figure) for figure in self.figures],
        }

    def to_markdown(self) -> str:
        """A table for each group, what its measures are, and what was demanded of them."""
        lines = [f"# {self.title}", ""]
        lines += [f"- {name}: {value}" for name, value in self.about.items()]
        lines += ["", f"Brackets hold {LEVEL:.0%} intervals, with people drawn anew.", ""]
        for group in dict.fromkeys(figure.group for figure in self.figures):
            lines += _table(group, [figure for figure in self.figures if figure.group == group])
        return "\n".join(lines).rstrip() + "\n"

    def write(self, folder: Path) -> None:
        """Writes both files, each whole or not at all.

        Raises:
          UserError: the folder cannot be written to.
        """
        told = json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"
        for name, text in ((JSON_FILE, told), (TEXT_FILE, self.to_markdown())):
            part = folder / f"{name}.part"
            try:
                part.write_text(text)
                part.replace(folder / name)
            except OSError as error:
                raise UserError(f"{folder / name}: cannot be written: {error}") from error


def _table(group: str, figures: Sequence[Figure]) -> list[str]:
    controls = list(dict.fromkeys(name for figure in figures for name in figure.controls))
    columns = ["measure", "ours", *controls, FLOOR, RANDOM, "of"]
    lines = [f"## {group}", "", f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for figure in figures:
        arrow = "↑" if figure.better == "higher" else "↓"
        unit = f", {figure.unit}" if figure.unit else ""
        beside = figure.beside()
        cells = [f"{figure.name}{unit} {arrow}", figure.cell(figure.value)]
        cells += [figure.cell(beside.get(name)) for name in (*controls, FLOOR, RANDOM)]
        lines.append(f"| {' | '.join([*cells, str(figure.value.count)])} |")
    lines.append("")
    lines += [f"- **{figure.name}**: {figure.meaning}" for figure in figures]
    demands = [
        f"- {figure.name} is {figure.words(demand)}: {'yes' if figure.holds(demand) else '**no**'}"
        for figure in figures
        for demand in figure.demands
    ]
    return [*lines, "", *(["What must hold:", "", *demands, ""] if demands else [])]


def _figure(figure: Figure) -> dict[str, Any]:
    said = ("group", "name", "meaning", "unit", "better")
    return {
        **{name: getattr(figure, name) for name in said},
        "value": _numbers(figure.value),
        "controls": {name: _numbers(x) for name, x in figure.controls.items()},
        "floor": _numbers(figure.floor),
        "random": _numbers(figure.random),
        "demands": [
            {"demand": figure.words(demand), "holds": figure.holds(demand)}
            for demand in figure.demands
        ],
    }


def _numbers(x: Estimate | None) -> dict[str, Any] | None:
    if x is None:
        return None
    low, high = (None if math.isinf(end) else end for end in (x.low, x.high))
    return {"value": x.value, "low": low, "high": high, "count": x.count}

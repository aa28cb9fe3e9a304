"""The language of weight tables: templates that tie torch names to Flax paths, read both ways.

A table is data (`convert/tables/`), `convert.engine` applies it. A template is a dotted name with
placeholders: `{path}` stands for one or more dotted parts, any other placeholder, such as `{i}`,
for a number. Both sides of a rule carry the same placeholders, so that a rule can be read from left
to right and from right to left without loss.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

Reorder = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one tensor lies in memory on either side: two functions, each the inverse of the other.

    They use only `transpose` and `reshape`, so that they take NumPy arrays and JAX tracers alike.
    """

    name: str
    to_flax: Reorder
    to_torch: Reorder


def _same(x):
    return x


SAME = Layout("same", _same, _same)
LINEAR = Layout("linear", lambda w: w.transpose(1, 0), lambda k: k.transpose(1, 0))
CONV = Layout("conv", lambda w: w.transpose(2, 3, 1, 0), lambda k: k.transpose(3, 2, 0, 1))
CONV1X1_AS_LINEAR = Layout(
    "conv 1x1 as linear",
    lambda w: w.reshape(w.shape[:2]).transpose(1, 0),
    lambda k: k.transpose(1, 0).reshape(*k.shape[::-1], 1, 1),
)


def linear_after_flatten(channels: int, height: int, width: int) -> Layout:
    """A linear layer behind a flattened map: torch flattens (c, h, w), our nets (h, w, c)."""

    def to_flax(w):
        out = w.shape[0]
        return w.reshape(out, channels, height, width).transpose(2, 3, 1, 0).reshape(-1, out)

    def to_torch(k):
        out = k.shape[1]
        return k.reshape(height, width, channels, out).transpose(3, 2, 0, 1).reshape(out, -1)

    return Layout(f"linear after flattening ({channels}, {height}, {width})", to_flax, to_torch)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One torch name template, the Flax path template it equals, and the layout between them.

    `aliases` are older torch names of the same tensor: read, never written.
    """

    torch: str
    flax: str
    layout: Layout = SAME
    aliases: tuple[str, ...] = ()

    def __post_init__(self):
        names = {
            template: set(_placeholders(template))
            for template in (self.torch, self.flax, *self.aliases)
        }
        if len({frozenset(n) for n in names.values()}) != 1:
            raise ValueError(
                f"the templates of a rule must carry the same placeholders, got {names}"
            )


@dataclasses.dataclass(frozen=True)
class Ignore:
    """A torch name that has no counterpart in Flax, and why that loses nothing."""

    torch: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Every torch name of one net: each is matched by exactly one rule or one ignore."""

    rules: tuple[Rule, ...]
    ignores: tuple[Ignore, ...] = ()

    def to_flax(self, key: str) -> list[tuple[str, Rule]]:
        """The Flax paths of a torch name: exactly one, unless table or file is wrong."""
        return [
            (_fill(rule.flax, found), rule)
            for rule in self.rules
            for template in (rule.torch, *rule.aliases)
            if (found := _match(template, key)) is not None
        ]

    def to_torch(self, path: str) -> list[tuple[str, Rule]]:
        """The torch names of a Flax path: exactly one, unless the table is wrong."""
        return [
            (_fill(rule.torch, found), rule)
            for rule in self.rules
            if (found := _match(rule.flax, path)) is not None
        ]

    def ignored(self, key: str) -> bool:
        """Whether the torch name is one that has no counterpart in Flax."""
        return any(_match(ignore.torch, key) is not None for ignore in self.ignores)


def linear(torch: str, flax: str | None = None) -> tuple[Rule, Rule]:
    """A linear layer with its bias."""
    flax = flax or torch
    return Rule(f"{torch}.weight", f"{flax}.kernel", LINEAR), Rule(f"{torch}.bias", f"{flax}.bias")


def conv(name: str) -> tuple[Rule, Rule]:
    """A convolution with its bias."""
    return Rule(f"{name}.weight", f"{name}.kernel", CONV), Rule(f"{name}.bias", f"{name}.bias")


def conv1x1(name: str) -> tuple[Rule, Rule]:
    """A 1×1 convolution with its bias, which is a linear layer here."""
    return (
        Rule(f"{name}.weight", f"{name}.kernel", CONV1X1_AS_LINEAR),
        Rule(f"{name}.bias", f"{name}.bias"),
    )


def norm(torch: str, flax: str | None = None) -> tuple[Rule, Rule]:
    """A group or layer norm."""
    flax = flax or torch
    return Rule(f"{torch}.weight", f"{flax}.scale"), Rule(f"{torch}.bias", f"{flax}.bias")


def batch_norm(name: str) -> tuple[Rule, ...]:
    """A batch norm with its running statistics."""
    return (
        *norm(name),
        Rule(f"{name}.running_mean", f"{name}.mean"),
        Rule(f"{name}.running_var", f"{name}.var"),
    )


def prefixed(rules: tuple[Rule, ...], torch: str, flax: str) -> tuple[Rule, ...]:
    """The rules of a part, set below the names that the part has in a larger net."""
    return tuple(
        Rule(torch + r.torch, flax + r.flax, r.layout, tuple(torch + a for a in r.aliases))
        for r in rules
    )


def _placeholders(template: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", template)


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)
    text = [re.escape(part) for part in parts]
    text[1::2] = [f"(?P<{name}>{'.+' if name == 'path' else '[0-9]+'})" for name in parts[1::2]]
    return re.compile("".join(text))


def _match(template: str, name: str) -> dict[str, str] | None:
    found = _pattern(template).fullmatch(name)
    return found.groupdict() if found else None


def _fill(template: str, values: dict[str, str]) -> str:
    return template.format_map(values)

"""The config means what it says: every field is read, and wrong values are refused."""

import ast
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import tyro

from fmv2.errors import UserError
from train.config import CHANGEABLE, TrainConfig, fixed_fields, to_dict
from train.presets.sd15 import sd15
from train.presets.sd15_pod import sd15_pod
from train.presets.sd15_upstream import sd15_upstream
from train.presets.tiny import tiny

ROOT = Path(__file__).parents[2]
CODE = [
    path
    for folder in ("convert", "data", "fmv2", "train")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "models" not in path.parts  # nets know of no run
]


def configs(kind: Any) -> Iterator[type]:
    """The dataclasses that a type is made of, its own first; the shapes of nets left out."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if kind.__module__.startswith("fmv2.models"):
            return
        yield kind
        for hint in get_type_hints(kind).values():
            yield from configs(hint)
    for inner in get_args(kind):
        yield from configs(inner)


class Reads(ast.NodeVisitor):
    """Which fields of which config classes some code reads.

    The type of an expression is followed from annotations (of parameters, fields and attributes)
    through assignments and attributes, so that a read of one class' field is none of another's of
    the same name.
    """

    def __init__(self, known: dict[str, type]):
        self.known = known
        self.fields = {
            name: {
                field: {c.__name__ for c in configs(hint)}
                for field, hint in get_type_hints(kind).items()
            }
            for name, kind in known.items()
        }
        self.found: set[tuple[str, str]] = set()
        self.scopes: list[dict[str, set[str]]] = [{}]
        self.attributes: dict[str, dict[str, set[str]]] = {}
        """Of every class in the code: the configs that its annotated attributes are."""
        self.owner: str | None = None

    def named(self, annotation: ast.AST | None) -> set[str]:
        """The classes that an annotation names."""
        if annotation is None:
            return set()
        text = ast.unparse(annotation)
        try:
            tree = ast.parse(text.strip("'\""))
        except SyntaxError:  # a shape of jaxtyping
            return set()
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        return names & (self.known.keys() | self.attributes.keys())

    def kinds(self, node: ast.AST) -> set[str]:
        """The classes that an expression may be of."""
        match node:
            case ast.Name(id=name):
                return next((s[name] for s in reversed(self.scopes) if name in s), set())
            case ast.Attribute(value=value, attr=field):
                return set().union(*(self.member(kind, field) for kind in self.kinds(value)))
            case ast.IfExp(body=body, orelse=other):
                return self.kinds(body) | self.kinds(other)
            case ast.Call(func=ast.Attribute(attr="replace"), args=[first, *_]):
                return self.kinds(first)
            case ast.Call(func=ast.Name(id=name)) if name in self.known:
                return {name}
        return set()

    def member(self, kind: str, field: str) -> set[str]:
        if kind in self.known:
            return self.fields[kind].get(field, set())
        return self.attributes.get(kind, {}).get(field, set())

    def visit_ClassDef(self, node: ast.ClassDef):
        outer, self.owner = self.owner, node.name
        self.generic_visit(node)
        self.owner = outer

    def visit_FunctionDef(self, node: ast.FunctionDef):
        if node.name == "__post_init__":  # a field that is only checked does nothing
            return
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        scope = {a.arg: self.named(a.annotation) for a in arguments}
        if arguments and arguments[0].arg in ("self", "cls") and self.owner:
            scope[arguments[0].arg] = {self.owner}
        self.scopes.append(scope)
        self.generic_visit(node)
        self.scopes.pop()

    def visit_Assign(self, node: ast.Assign):
        self.generic_visit(node)
        for target in node.targets:
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            targets = target.elts if isinstance(target, ast.Tuple) else [target]
            for one, value in zip(targets, values, strict=False):
                self.assign(one, self.kinds(value))

    def assign(self, target: ast.AST, kinds: set[str]):
        if isinstance(target, ast.Name):
            self.scopes[-1][target.id] = kinds
        elif isinstance(target, ast.Attribute) and self.owner and kinds:
            self.attributes.setdefault(self.owner, {})[target.attr] = kinds

    def visit_AnnAssign(self, node: ast.AnnAssign):
        self.generic_visit(node)
        if isinstance(node.target, ast.Name) and self.owner and len(self.scopes) == 1:
            self.attributes.setdefault(self.owner, {})[node.target.id] = self.named(node.annotation)

    def visit_Attribute(self, node: ast.Attribute):
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            self.found |= {(kind, node.attr) for kind in self.kinds(node.value)}

    def visit_Call(self, node: ast.Call):
        self.generic_visit(node)
        match node:
            case ast.Call(func=ast.Name(id="getattr"), args=[value, name, *_]):
                parts = name.values if isinstance(name, ast.JoinedStr) else [name]
                pattern = "".join(
                    re.escape(str(x.value)) if isinstance(x, ast.Constant) else r"\w+"
                    for x in parts
                )
                for kind in self.kinds(value) & self.fields.keys():
                    fields = self.fields[kind]
                    if any(isinstance(x, ast.Constant) for x in parts):  # else it says nothing
                        self.found |= {(kind, f) for f in fields if re.fullmatch(pattern, f)}


def unread(code: list[str], root: type) -> list[str]:
    """Fields of a config that no code reads."""
    known = {kind.__name__: kind for kind in configs(root)}
    reads = Reads(known)
    trees = [ast.parse(text) for text in code]
    for _ in range(2):  # the second time, all attributes of classes are known
        for tree in trees:
            reads.visit(tree)
    return [
        f"{name}.{field.name}"
        for name, kind in known.items()
        for field in dataclasses.fields(kind)
        if (name, field.name) not in reads.found
    ]


def test_every_field_is_read_somewhere():
    assert unread([path.read_text() for path in CODE], TrainConfig) == []


def test_a_field_that_is_only_checked_or_read_of_another_class_would_be_found():
    @dataclasses.dataclass
    class Inner:
        used: int
        size: int

    @dataclasses.dataclass
    class Outer:
        inner: Inner
        size: int
        checked: int

    globals().update(Inner=Inner)  # where get_type_hints looks
    try:
        code = """
class Outer:
    def __post_init__(self):
        assert self.checked
class Holder:
    config: Outer
    def run(self):
        inner = self.config.inner
        return inner.used
def f(x: Outer, y: Path):
    return x.size, y.checked
"""
        Outer.__annotations__["inner"] = Inner
        assert unread([code], Outer) == ["Outer.checked", "Inner.size"]
    finally:
        del globals()["Inner"]


@pytest.mark.parametrize("preset", [tiny, sd15, sd15_upstream, sd15_pod])
def test_a_preset_goes_to_json_and_back_through_the_command_line(preset):
    config = preset()
    written = to_dict(config)
    assert json.loads(json.dumps(written)) == written
    assert written["objective"]["name"] == type(config.objective).__name__
    assert written.keys() - fixed_fields(config).keys() == set(CHANGEABLE)
    args = ["--data", "records", "--out", "run", "--steps", "7", "--checkpoint-every", "3"]
    asked = tyro.cli(TrainConfig, default=config, args=args)
    expected = dataclasses.replace(config, data="records", out="run", steps=7, checkpoint_every=3)
    assert asked == expected


def test_the_published_run_is_told_from_ours():
    ours, theirs = to_dict(sd15()), to_dict(sd15_upstream())
    assert theirs["objective"]["map_loss"] == "upstream"
    assert theirs["objective"]["id_weight"] == 0
    assert theirs["mask_resize"] == "bilinear"
    assert theirs["drops"] | {"masks": "never"} == theirs["drops"]
    assert (theirs["drops"]["id"], theirs["drops"]["both"]) == (0, 0)
    assert theirs["optimizer"]["clip_norm"] is theirs["optimizer"]["ema_decay"] is None
    assert ours["batch_size"] == theirs["batch_size"] == 64


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("--optimizer.learning-rat", "--optimizer.learning-rate"), ("--batchsize", "--batch-size")],
)
def test_a_misspelt_option_is_refused_and_the_nearest_named(capsys, wrong, nearest):
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(TrainConfig, default=tiny(), args=[wrong, "1"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert wrong in said
    assert nearest in said


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"steps": 0}, "steps=0: expected 1 or more"),
        (
            {"size": 100, "attribute": -0.1, "flip": 2.0},
            r"size=100: expected a multiple.*; attribute=-0.1: expected.*; flip=2.0: expected",
        ),
        ({"batch_size": -1}, "batch_size=-1: expected 1 or more"),
    ],
)
def test_values_that_cannot_be_are_refused_all_at_once(fields, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(tiny(), **fields)

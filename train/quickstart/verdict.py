"""The quickstart's last stage: it draws, looks, measures, and writes grid.png and the report.

Every figure stands beside the same of other pictures: without a channel, of the true pictures (what
the scorer itself gets wrong), and of pairs at random.
"""

import dataclasses
import os
import platform
from collections.abc import Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from rich.console import Console

from convert.folder import assemble, read
from data.procedural.world import World, coefficients_of
from fmv2.assets import SCORER
from fmv2.conditions import Conditions
from fmv2.face.head import Head
from fmv2.metrics import attributes, identity
from fmv2.metrics.estimate import Estimate, estimate, exact
from fmv2.metrics.head import light_error, pose_error, shading_error, shading_maps
from fmv2.metrics.report import Demand, Figure, Report
from fmv2.metrics.scorer import Reading, Scorer, load_scorer
from fmv2.pipeline import FaceMakeUp
from fmv2.tokens import EMBEDDED, Tokens
from train.quickstart import torch_side
from train.quickstart.grid import grid
from train.quickstart.pictures import (
    BASE,
    NO_IDENTITY,
    NO_SHADING,
    OURS,
    VARIANTS,
    attention_in,
    conditions_of,
    draw,
    export_arrays,
    export_settings,
    model_at,
    one_of,
)
from train.quickstart.regions import NO_MAP, attention, changes
from train.quickstart.scenes import Scenes, held_out

PEOPLE, EACH, ROWS = 24, 2, 6
"""Held-out people that are drawn; how often each, where a demand hangs on the mean; those who are
in the grid and drawn by PyTorch."""
STRANGERS = 72
"""Held-out people who are in the gallery alone."""
SHUFFLED = "reference shuffled"
_GALLERY = "strangers"
_CELL = 8
"""Pixels of a latent: the scorer places a face's edge no better than to some pixels, and without
this its own error on true pictures is half of that of random pairs."""

Images = UInt8[np.ndarray, "n s s 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Judged:
    """Pictures of one kind, and what the scorer reads off them."""

    images: Images
    reading: Reading
    embedding: Float[np.ndarray, "n d"]


def write_verdict(out: Path, of: World, few: int, about: Mapping[str, Any]) -> Report:
    """Draws with the quickstart's models and says how well.

    Args:
      out: the quickstart's folder.
      of: whose held-out people are drawn.
      few: steps after which the runs with and without map term are compared.
      about: what the report is to tell of the run.
    """
    console = Console(stderr=True)
    with ThreadPoolExecutor() as beside:  # rendering leaves Python to the reading of models
        rendered = beside.submit(held_out, of, PEOPLE, STRANGERS)
        whole = read(assemble([out / "model"]), dtype=jnp.float32)
        mapped = {
            name: model_at(out, run, few) for name, run in ((OURS, "run"), (NO_MAP, "run-no-map"))
        }
        scenes = rendered.result()
    assert whole.head is not None  # the embedded default has one
    model = FaceMakeUp(whole)
    conditions = conditions_of(model, scenes)
    texts = [said.worded.text for said in scenes.prompts]
    drawn = {
        name: draw(model, texts * each, conditions * each, console, name, **knobs)
        for name, knobs in VARIANTS.items()
        for each in [EACH if name in (OURS, NO_SHADING) else 1]
    }
    some = slice(min(ROWS, len(conditions)))
    torch_images = torch_side.render(
        out / "model", texts[some], export_arrays(model, conditions[some]), export_settings()
    )
    seen = attention_in(model, drawn[OURS][some], scenes.prompts[some], conditions[some])
    columns = {
        "reference": scenes.references,
        "its shading": scenes.reference_shadings,
        "target shading": np.stack([found.shading for found in conditions]),
        "base model": drawn[BASE],
        "ours, JAX": drawn[OURS][: len(conditions)],
        "ours, PyTorch": np.round(255 * torch_images).astype(np.uint8),
        "true picture": scenes.truths,
    }
    page = grid(columns, seen, scenes.prompts[some], Tokens.load(EMBEDDED))

    scorer = load_scorer(SCORER)
    shown = {
        **drawn,
        "true": scenes.truths,
        "reference": scenes.references,
        _GALLERY: scenes.strangers,
    }
    judged = {name: _judge(scorer, images) for name, images in shown.items()}
    figures = [
        *_identity(judged),
        *_head(judged, scenes, conditions, whole.head),
        *_text(judged, scenes, scorer),
        *attention(mapped, model, scenes, conditions, few),
        *changes(mapped, scenes, conditions, console, few),
        _export(columns["ours, JAX"][some], columns["ours, PyTorch"][some]),
    ]
    report = Report(
        title="Quickstart: the embedded default on people whom it has never seen",
        about={**about, **_machine(), "held-out people": len(conditions)},
        figures=figures,
    )
    page.save(out / "grid.part", "PNG")
    (out / "grid.part").replace(out / "grid.png")
    report.write(out)
    return report


def _judge(scorer: Scorer, images: Images) -> _Judged:
    reading = _read(scorer, images)
    return _Judged(
        images=images,
        reading=jax.tree.map(np.asarray, reading),
        embedding=np.asarray(scorer.embedding(reading)),
    )


@jax.jit
def _read(scorer: Scorer, images: Images) -> Reading:
    return scorer(images / jnp.float32(255))


def _people(drawn: Sized) -> Int[np.ndarray, " n"]:
    """Who is in each of as many pictures as there are of these."""
    return np.arange(len(drawn)) % PEOPLE


def _identity(judged: Mapping[str, _Judged]) -> list[Figure]:
    wanted = judged["reference"].embedding
    gallery = np.concatenate([wanted, judged[_GALLERY].embedding])
    everyone, in_gallery = _people(wanted), np.arange(len(gallery))

    def near(name: str) -> Estimate:
        found = judged[name].embedding
        people = _people(found)
        return estimate(identity.cosines(found, wanted[people]), people)

    def far(name: str) -> Estimate:
        found = judged[name].embedding
        people = _people(found)
        return estimate(identity.cosines_with_others(found, people, wanted, everyone), people)

    def first(name: str) -> Estimate:
        found = judged[name].embedding
        people = _people(found)
        right = identity.rank_one(found, people, gallery, in_gallery)
        return estimate(right.astype(float), people)

    return [
        Figure(
            group="identity",
            name="cosine to the reference",
            meaning="Of the scorer's embeddings of the picture drawn and of the person's own"
            " picture, which the model was given.",
            better="higher",
            value=near(OURS),
            controls={SHUFFLED: far(OURS), NO_IDENTITY: near(NO_IDENTITY)},
            floor=near("true"),
            random=far("true"),
            demands=(Demand(than=SHUFFLED, clearly=True), Demand(than=NO_IDENTITY)),
        ),
        Figure(
            group="identity",
            name="rank 1",
            meaning=f"How often the right one is the nearest in a gallery of {len(gallery)} people"
            " held out: the references, and pictures of strangers.",
            better="higher",
            value=first(OURS),
            controls={NO_IDENTITY: first(NO_IDENTITY)},
            floor=first("true"),
            random=estimate(identity.rank_one_chance(everyone, in_gallery), everyone),
            demands=(Demand(than="at random", times=5),),
        ),
    ]


def _head(
    judged: Mapping[str, _Judged], scenes: Scenes, conditions: list[Conditions], head: Head
) -> list[Figure]:
    size = scenes.truths.shape[1]
    maps = {
        name: np.asarray(shading_maps(judged[name].reading, head, size=size))
        for name in (OURS, NO_SHADING, "true")
    }
    asked = np.stack([found.shading for found in conditions])

    def off(name: str, wanted: Images) -> Estimate:
        people = _people(maps[name])
        return estimate(shading_error(maps[name], wanted[people], cell=_CELL), people)

    shading = Figure(
        group="shading",
        name="shading map",
        meaning="Root mean square difference, of [0, 1], between the map that the model was given"
        " and the one that the scorer reads off the picture, where either shows a face; both in"
        f" means of {_CELL} × {_CELL} pixels.",
        better="lower",
        value=off(OURS, asked),
        controls={NO_SHADING: off(NO_SHADING, asked)},
        floor=off("true", scenes.truth_shadings),
        random=off("true", np.roll(scenes.truth_shadings, 1, axis=0)),
        demands=(Demand(than=NO_SHADING, times=0.5),),
    )
    wanted = [coefficients_of(one_of(scenes.targets, number)) for number in range(PEOPLE)]
    pose = np.stack([one["coefficients/pose"] for one in wanted])
    light = np.stack([one["coefficients/light"] for one in wanted])
    return [
        shading,
        _against(
            judged, pose_error, "pose", pose, name="pose", unit="degrees", digits=1,
            meaning="Angle between the head's rotation asked for and the one read off the picture.",
            demands=(Demand(than=NO_SHADING, times=0.5),),
        ),
        _against(
            judged, light_error, "light", light, name="light",
            meaning="Relative error of the light that falls on surfaces of all directions, however"
            " bright, read off the picture.",
            demands=(Demand(than=NO_SHADING),),
        ),
    ]  # fmt: skip


def _against(judged, error, field: str, wanted: np.ndarray, **told: Any) -> Figure:
    """One of a reading's fields against what was asked for."""

    def of(name: str, asked: np.ndarray = wanted) -> Estimate:
        found = getattr(judged[name].reading, field)
        people = _people(found)
        return estimate(error(found, asked[people]), people)

    return Figure(
        group="shading",
        better="lower",
        value=of(OURS),
        controls={NO_SHADING: of(NO_SHADING)},
        floor=of("true"),
        random=of("true", np.roll(wanted, 1, axis=0)),
        **told,
    )


def _text(judged: Mapping[str, _Judged], scenes: Scenes, scorer: Scorer) -> list[Figure]:
    asked = [said.classes for said in scenes.prompts]

    def true(name: str, of: list[Mapping[str, str]] = asked) -> Estimate:
        logits: Any = judged[name].reading.logits
        people = _people(judged[name].images)
        told = [of[person] for person in people]
        return estimate(attributes.fractions_true(logits, told, scorer.config.classes), people)

    return [
        Figure(
            group="text",
            name="attributes",
            meaning="Of those that the prompt names, the share that the scorer finds.",
            better="higher",
            value=true(OURS),
            controls={BASE: true(BASE)},
            floor=true("true"),
            random=true("true", [asked[-1], *asked[:-1]]),
            demands=(Demand(than="at random", clearly=True),),
        )
    ]


def _export(ours: Images, theirs: Images) -> Figure:
    difference = np.abs(ours.astype(int) - theirs.astype(int)).max()
    return Figure(
        group="export",
        name="largest difference of a pixel",
        meaning="Between JAX's pictures and those that PyTorch draws from the exported folder.",
        better="lower",
        value=exact(float(difference), len(ours)),
        unit="of 255",
        digits=0,
        demands=(Demand(than=2.0),),
    )


def _machine() -> dict[str, Any]:
    kind = jax.devices()[0].device_kind
    return {
        "device": f"{os.cpu_count()} {platform.machine()} cores" if kind == "cpu" else kind,
        "versions": ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "torch")),
    }

"""Drawing, looking and measuring with random nets: what is said is what was made."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import train.quickstart.pictures as pictures
import train.quickstart.verdict as verdict
from convert.folder import assemble, read
from data.procedural.world import World
from fmv2.pipeline import FaceMakeUp
from fmv2.tokens import EMBEDDED
from tests.train.small import IMAGE_SIZE
from train.quickstart.regions import NO_MAP

WORLD = World(seed=2, count=60, size=IMAGE_SIZE, images_per_identity=1, tokenizer=EMBEDDED)


@pytest.fixture
def out(model, scorer, tmp_path, monkeypatch):
    (tmp_path / "model").symlink_to(model)
    monkeypatch.setattr(verdict, "SCORER", scorer)
    monkeypatch.setattr(verdict, "PEOPLE", 2)
    monkeypatch.setattr(verdict, "model_at", lambda *at: FaceMakeUp(read(assemble([model]))))
    monkeypatch.setattr(pictures, "SETTINGS", dataclasses.replace(pictures.SETTINGS, steps=2))
    return tmp_path


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # of diffusers, to numpy
def test_grid_and_report(out):
    verdict.write_verdict(out, WORLD, 1, {"steps": 4})
    report = json.loads((out / "report.json").read_text())
    figures = {figure["name"]: figure for figure in report["figures"]}
    groups = {figure["group"] for figure in figures.values()}
    assert groups == {"identity", "shading", "text", "export"}
    assert figures["largest difference of a pixel"]["value"]["value"] <= 2
    for name, figure in figures.items():  # but for the export, each has something beside it
        assert figure["group"] == "export" or figure["controls"] or figure["random"], name
        assert figure["demands"], name
    same = figures["change outside the region, 1 steps"]
    assert same["value"] == same["controls"][NO_MAP]  # one model twice
    assert same["value"]["value"] > 0
    assert report["about"]["steps"] == 4
    assert report["about"]["held-out people"] == 2
    with Image.open(out / "grid.png") as grid:
        assert np.asarray(grid).std() > 10

"""The whole quickstart, on random nets of few layers: every stage, its resumption, its report."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image

import train.quickstart.command as command
import train.quickstart.job as job
import train.quickstart.pictures as pictures
import train.quickstart.verdict as verdict
from convert import runs
from fmv2.errors import UserError
from tests.train.small import IMAGE_SIZE
from train.config import ReportConfig
from train.presets.tiny import tiny

STEPS = job.SHARE


@pytest.fixture
def small(base, scorer, monkeypatch):
    """The quickstart at this size."""
    monkeypatch.setattr(job, "TINY", base)
    monkeypatch.setattr(pictures, "TINY", base)
    monkeypatch.setattr(verdict, "SCORER", scorer)
    monkeypatch.setattr(job, "synth", functools.partial(job.synth, workers=1))
    monkeypatch.setattr(job, "SIZE", IMAGE_SIZE)
    monkeypatch.setattr(job, "PEOPLE", 40)
    monkeypatch.setattr(pictures, "SETTINGS", dataclasses.replace(pictures.SETTINGS, steps=2))
    own = tiny()
    config = dataclasses.replace(
        own,
        size=IMAGE_SIZE,
        batch_size=8,
        objective=dataclasses.replace(own.objective, rank=2, id_every=1, id_bound=1000),
        report=ReportConfig(validate_every=0, sample_every=0),
    )
    monkeypatch.setattr(job, "tiny", lambda: config)


@pytest.mark.slow  # minutes of compiling; the stages have tests of their own
def test_every_stage_and_again(small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    before = jax.config.jax_compilation_cache_dir
    assert job.run(out, STEPS) == 0
    assert jax.config.jax_compilation_cache_dir == before
    assert any((out / "cache").iterdir())
    report = json.loads((out / "report.json").read_text())
    figures = {figure["name"]: figure for figure in report["figures"]}
    assert {figure["group"] for figure in figures.values()} == {
        "identity", "shading", "text", "export",
    }  # fmt: skip
    assert figures["largest difference of a pixel"]["value"]["value"] <= 2
    assert report["about"]["steps"] == STEPS
    assert "What must hold" in (out / "report.md").read_text()
    with Image.open(out / "grid.png") as grid:
        pixels = np.asarray(grid)
    assert pixels.std() > 10
    assert runs.steps(out / "run") == list(range(1, STEPS + 1))

    # What is there is not made again, and what is missing is.
    for name in ("drawn", "records", "run", "run-no-map", "model"):
        assert (out / name).is_dir(), name
    (out / "report.md").unlink()
    monkeypatch.setattr(job, "synth", None)
    monkeypatch.setattr(job, "encode", None)
    monkeypatch.setattr(job, "train", None)
    monkeypatch.setattr(job, "to_diffusers", None)
    asked = []
    monkeypatch.setattr(verdict, "write_verdict", lambda *given: asked.append(given))
    assert job.run(out, STEPS) == 0
    assert [given[2] for given in asked] == [1]
    with pytest.raises(UserError, match=f"was begun with --steps {STEPS}, not {2 * STEPS}"):
        job.run(out, 2 * STEPS)


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(UserError, match="is not a quickstart's"):
        job.run(tmp_path, STEPS)
    with pytest.raises(UserError, match=f"--steps is {STEPS - 1}: expected {STEPS} or more"):
        job.run(tmp_path / "out", STEPS - 1)
    assert not (tmp_path / "out").exists()


def test_an_ending_run_ends_it(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "synth", lambda **given: None)
    monkeypatch.setattr(job, "encode", lambda *given, **named: None)
    monkeypatch.setattr(job, "train", lambda config, until: 143)
    assert job.run(tmp_path / "out", STEPS) == 143


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(**given):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "synth", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.quickstart(out=tmp_path / "out", steps=STEPS)
    told = f"go on with: fmv2 quickstart --out {tmp_path / 'out'} --steps {STEPS}"
    assert told in capsys.readouterr().err

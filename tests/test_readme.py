"""Every command and every line of Python in the README runs, in the order it stands there."""

import inspect
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.procedural.head import make_head
from fmv2 import cli
from fmv2.face.head import Head, save_head
from tests.random_model import write_sources
from train.quickstart.command import quickstart

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the README names."""
    base, model_bin, clip, arcface, deca = write_sources(tmp_path)
    base.rename(tmp_path / "stable-diffusion")
    clip.rename(tmp_path / "image_encoder")
    names = [path.name for path in (model_bin, arcface, deca)]
    assert names == ["model.bin", "backbone.pth", "deca_model.tar"]
    made = make_head()
    (tmp_path / "flame").mkdir()
    save_head(Head(made.model, made.surface), tmp_path / "flame")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "face.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_and_python(folder):
    shell = "\n".join(blocks("sh")).replace("\\\n", " ")
    commands = shell.splitlines()
    calls = [shlex.split(line) for line in commands if line.startswith("fmv2 ")]
    assert len(calls) == 9
    for words in calls:
        if "--count" in words:  # minutes of rendering
            words[words.index("--count") + 1] = "3"
        assert not cli.main(words[1:]), words
    (code,) = blocks("python")
    found = {}
    exec(code, found)
    assert found["made"].images.shape == (2, 64, 64, 3)
    assert np.isfinite(found["made"].attention[0]["red hair"]).all()
    assert (folder / "sample.png").is_file()


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE)
    assert targets == ["quickstart", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / link).exists(), link


def test_what_the_first_command_leaves_is_nothing_to_the_second():
    """`make test` looks at all that git does not ignore, and the quickstart's model holds code."""
    out = inspect.signature(quickstart).parameters["out"].default
    assert f"/{out}/" in (ROOT / ".gitignore").read_text().splitlines()

"""Every command and every line of Python in the README runs, in the order it stands there."""

import re
import shlex
from pathlib import Path

import pytest

from convert.random_model import write_sources
from fmv2 import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the README names."""
    base, model_bin, clip, arcface, _ = write_sources(tmp_path)
    base.rename(tmp_path / "stable-diffusion")
    clip.rename(tmp_path / "image_encoder")
    assert (model_bin.name, arcface.name) == ("model.bin", "backbone.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_and_python(folder):
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    calls = [shlex.split(line) for line in commands if line.startswith("fmv2 ")]
    assert len(calls) == 7
    for words in calls:
        if "--count" in words:  # minutes of rendering
            words[words.index("--count") + 1] = "3"
        assert not cli.main(words[1:]), words
    (code,) = blocks("python")
    found = {}
    exec(code, found)
    side = found["side"]
    assert found["noise"].shape == (1, side, side, 4)
    assert {p.shape[2] for p in found["attention"].values()} == {(side // 2) ** 2}


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE)
    assert targets == ["quickstart", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / link).exists(), link

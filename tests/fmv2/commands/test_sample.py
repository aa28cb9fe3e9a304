"""`fmv2 sample`: any picture of a face makes a picture or a line, never a traceback."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from convert.folder import write
from fmv2.cli import main
from fmv2.pipeline import FaceMakeUp
from tests.fmv2.model import SIZE, picture, small_model

FEW = ["--steps", "1"]


@pytest.fixture(scope="module")
def hand() -> FaceMakeUp:
    return FaceMakeUp(small_model())


@pytest.fixture
def run(capsys, monkeypatch, tmp_path, hand):
    """Runs the command on a model that is read already: exit status and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words, read=True):
        with monkeypatch.context() as patch:
            if read:
                patch.setattr(FaceMakeUp, "from_pretrained", lambda name, dtype: hand)
            status = main(["sample", *map(str, words)]) or 0
        return status, capsys.readouterr().err

    return run


def save_grey(path: Path) -> None:
    Image.fromarray(picture()[..., 0]).save(path)


def save_rgba(path: Path) -> None:
    Image.fromarray(np.dstack([picture(), picture(1)[..., 0]])).save(path)


def save_deep(path: Path) -> None:
    cv2.imwrite(str(path), picture()[..., 0].astype(np.uint16) * 257)


def save_turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(np.rot90(picture(), -1)).save(path, exif=exif.tobytes())


def save_tiny(path: Path) -> None:
    Image.fromarray(picture(0, 10, 10)).save(path)


def save_huge(path: Path) -> None:
    Image.fromarray(cv2.resize(picture()[..., 0], (8000, 8000))).save(path, compress_level=0)


@pytest.mark.parametrize(
    "save", [save_grey, save_rgba, save_deep, save_turned, save_tiny, save_huge]
)
def test_any_picture_of_a_face(run, tmp_path, save, hand):
    face = tmp_path / "face.png"
    save(face)
    status, err = run("--prompt", "a woman", "--face", face, *FEW)
    assert (status, err) == (0, "wrote sample.png\n")
    drawn = np.asarray(Image.open("sample.png"))
    assert drawn.shape == (SIZE, SIZE, 3)
    assert drawn.std() > 5
    if save is save_turned:  # what it shows upright is the plain picture
        expected = hand.generate("a woman", hand.prepare(picture()), steps=1).images[0]
        np.testing.assert_array_equal(drawn, expected)


def test_the_recipe_is_in_the_picture_and_makes_it_again(run, tmp_path, hand):
    face = tmp_path / "gesicht-ü.png"
    Image.fromarray(picture()).save(face)
    words = ["--prompt", "a woman – “red hair”", "--face", face, *FEW]
    words += ["--num-images", 2, "--seed", 5, "--neutral", "light", "pose", "--id-scale", 0.5]
    assert run(*words, "--out", "made.png")[0] == 0
    with Image.open("made-1.png") as image:
        recipe = image.text  # type: ignore[attr-defined]
    assert recipe["prompt"] == "a woman – “red hair”"
    numbers = ("seed", "steps", "guidance_scale", "id_scale", "s_scale", "shading_scale", "picture")
    assert [json.loads(recipe[name]) for name in numbers] == [5, 1, 7.5, 0.5, 0.7, 0.5, 1]
    assert recipe["sampler"] == "ddim"
    assert recipe["model_digest"] == hand.digest
    assert json.loads(recipe["neutral"]) == ["light", "pose"]
    (named,) = json.loads(recipe["face"])
    assert named["file"] == "gesicht-ü.png"
    assert len(named["sha256"]) == 64
    assert json.loads(recipe["size"]) == SIZE

    status, err = run(*words, "--out", "made.png")
    assert status == 2
    assert "made-0.png, made-1.png is there already" in err
    assert run(*words, "--out", "again.png")[0] == 0
    again, made = (np.asarray(Image.open(f"{name}-1.png")) for name in ("again", "made"))
    np.testing.assert_array_equal(again, made)
    assert (made != np.asarray(Image.open("made-0.png"))).any()


def test_an_edit(run):
    Image.fromarray(picture(3, SIZE, SIZE)).save("source.png")
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:32] = 255
    Image.fromarray(mask).save("mask.png")
    words = ["--prompt", "red", "--edit", "source.png", "--mask", "mask.png", *FEW]
    assert run(*words, "--out", "edited.png")[0] == 0
    edited = np.asarray(Image.open("edited.png"))
    np.testing.assert_array_equal(edited[32:], picture(3, SIZE, SIZE)[32:])
    assert (edited[:32] != picture(3, SIZE, SIZE)[:32]).any()


def test_long_and_empty_prompts(run):
    long = " ".join(["a woman with red hair"] * 100)
    status, err = run("--prompt", long, *FEW, "--out", "long.png")
    assert status == 0
    assert "tokens, of which the first 75 are read" in err
    status, err = run("--prompt", "", *FEW, "--out", "empty.png")
    assert (status, err) == (0, "wrote empty.png\n")


def test_all_faults_in_one_line(run, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "there.png").write_text("")
    words = ["--prompt", "a woman", "--face", "text.png", "absent.png", "--seed", -1]
    words += ["--size", 60, "--id-scale", 3, "--weights", 1, "--out", "there.png"]
    status, err = run(*words)
    assert status == 2
    assert err.count("\n") == 1
    for fault in (
        "text.png: not a picture",
        "absent.png: no such file",
        "seed=-1",
        "size=60: expected a multiple of 8",
        "id_scale=3.0: expected 0 to 2",
        "1 --weights for 2 faces",
        "there.png is there already",
    ):
        assert fault in err, fault
    assert (tmp_path / "there.png").read_text() == ""


def test_models_that_lack_parts(run, tmp_path, monkeypatch):
    status, err = run("--prompt", "", "--model", "absent", "--face", "none.png", read=False)
    assert (status, err.count("\n")) == (2, 1)
    assert "absent: no such folder" in err
    assert "none.png: no such file" in err
    (tmp_path / "empty").mkdir()
    status, err = run("--prompt", "", "--model", tmp_path / "empty", read=False)
    assert (status, err.count("\n")) == (2, 1)

    poor = dataclasses.replace(small_model(), head=None, adapter=None, shadingnet=None)
    write(poor, tmp_path / "poor")
    Image.fromarray(picture()).save("face.png")
    status, err = run("--prompt", "", "--model", "poor", "--face", "face.png", read=False)
    assert (status, err.count("\n")) == (2, 1)
    for part in ("no adapter", "no head"):
        assert part in err


def test_half_of_an_edit(run):
    Image.fromarray(picture(3, SIZE, SIZE)).save("source.png")
    status, err = run("--prompt", "", "--edit", "source.png", "--neutral", "pose")
    assert status == 2
    assert "--edit and --mask go together" in err
    assert "need a --face" in err

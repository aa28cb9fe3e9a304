"""Pictures and validation of a small Face-MakeUpV2, and the sheet that they are shown on."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from data.drawing import COLORS, PAGE, TILE, left, top
from tests.data.faces import Words
from tests.train.small import IMAGE_SIZE, write_base, write_records
from train import samples
from train.config import ReportConfig, TrainConfig
from train.loop import train
from train.objectives.face_makeup import FaceMakeUp
from train.optimizer import OptimizerConfig
from train.samples import Samples, sheet


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of two steps, each validated, the second drawn."""
    folder = tmp_path_factory.mktemp("run")
    base = write_base(folder / "base")
    config = TrainConfig(
        data=str(write_records(folder / "data", base)),
        out=str(folder / "out"),
        base=base,
        steps=2,
        objective=FaceMakeUp(id_weight=0.0, rank=2),
        optimizer=OptimizerConfig(learning_rate=1e-2, ema_decay=0.5),
        batch_size=8,
        size=IMAGE_SIZE,
        compute="float32",
        report=ReportConfig(
            log_every=1, validate_every=1, validation_batches=2, sample_every=2, samples=2
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "STEPS", 2)
        assert train(config) == 0
    return folder / "out"


def rows(out) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_samples_are_drawn_on_a_sheet(run):
    with Image.open(run / "samples" / "2.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape[0] == top(2)
    for row in range(2):
        for column in range(5):
            x, y = left(column), top(row)
            tile = pixels[y : y + TILE, x : x + TILE]
            assert (tile != np.array(PAGE)).any(-1).mean() > 0.9, (row, column)
    # The first is drawn from the first record's conditions: its own picture stands beside it.
    assert not (pixels[top(0) : top(0) + TILE] == pixels[top(1) : top(1) + TILE]).all()


def test_validation_is_of_the_state_alone(run):
    found = [row for row in rows(run) if "validation/loss" in row]
    assert [row["step"] for row in found] == [1, 2]
    assert set(found[0]) == {"step", *(f"validation/{name}" for name in ("loss", "map", "noise"))}
    # The learning step in between is all that differs: neither noise nor records are drawn anew.
    assert found[0]["validation/loss"] == pytest.approx(found[1]["validation/loss"], rel=0.2)
    assert found[0]["validation/loss"] != found[1]["validation/loss"]


@dataclasses.dataclass
class Rows:
    """What a sheet reads of a batch."""

    image: np.ndarray
    shading: np.ndarray
    face: np.ndarray
    input_ids: np.ndarray
    token_mask: np.ndarray
    mask_valid: np.ndarray


class Spoken:
    """A tokenizer of whole words that can be read back."""

    def __init__(self):
        self._tokens = Words()
        self.phrases = self._tokens.phrases
        self.ids = self._tokens.ids

    def words(self, ids) -> str:
        return " ".join(self._tokens.words[i] for i in ids if i < len(self._tokens.words))


def test_attention_glows_in_the_colour_of_its_words():
    tokens = Spoken()
    text = "a red hat"
    grey = np.full((1, 32, 32, 3), 120, np.uint8)
    mask = np.zeros((1, 2, 77), bool)
    mask[0, 1] = tokens.phrases(text, [(2, 9)])[0]
    maps = np.zeros((1, 2, 4, 4), np.float32)
    maps[0, 0] = 1  # of a phrase that is not there
    maps[0, 1, :2] = 1
    batch = Rows(grey, grey, grey, tokens.ids(text)[None], mask, np.array([[False, True]]))
    pixels = sheet(Samples(grey, maps), batch, tokens)  # type: ignore[arg-type]
    tile = pixels[top(0) : top(0) + TILE, left(4) : left(4) + TILE].astype(int)
    upper, lower = tile[20, 100], tile[-20, 100]
    assert np.abs(upper - COLORS[1]).sum() < np.abs(lower - COLORS[1]).sum()
    assert np.ptp(lower) == 0  # grey still
    words = pixels[top(0) :, left(5) :].reshape(-1, 3)
    assert (words == COLORS[1]).all(-1).any()
    assert not (words == COLORS[0]).all(-1).any()

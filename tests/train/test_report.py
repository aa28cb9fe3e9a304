import json
import struct
import sys
import types

import numpy as np
import pytest
from etils import epath
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from fmv2.errors import UserError
from tests.train.toy import toy_run, write_inputs
from train.config import ReportConfig
from train.loop import train
from train.report import _duration, _line
from train.sinks import Lines, TensorBoard, WandB, open_sinks


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def events(folder) -> list[Event]:
    """TensorBoard's files, by the format of TFRecord: length, its checksum, bytes, theirs."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_a_run_says_every_so_many_steps_how_it_goes_and_keeps_a_trace(inputs, tmp_path, capfd):
    out = tmp_path / "run"
    report = ReportConfig(
        log_every=2, validate_every=3, validation_batches=1, sample_every=3, profile=(2, 3)
    )
    assert train(toy_run(*inputs, out, report=report)) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split("  ")[0] for line in lines] == ["step 2/6", "step 4/6", "step 6/6"]
    for word in ("loss ", "error ", "images/s", "s/step", "data-wait ", "learning_rate 0.01"):
        assert word in lines[0]
    assert lines[-1].endswith("0 s left")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 6]
    assert set(rows[1]) == {"step", "validation/loss", "validation/error"}
    assert rows[0]["images_per_second"] == pytest.approx(8 / rows[0]["seconds_per_step"])
    assert 0 <= rows[0]["waiting"] <= 1
    assert not (out / "samples").exists()  # it draws no pictures
    assert list((out / "profile").rglob("*.xplane.pb"))
    values = {(e.step, v.tag) for e in events(out / "tensorboard") for v in e.summary.value}
    assert {(2, "loss"), (3, "validation/loss"), (6, "seconds_per_step")} <= values


def test_what_a_killed_run_told_of_steps_that_are_made_again_is_dropped(tmp_path):
    def rows():
        return (tmp_path / "metrics.jsonl").read_text().splitlines()

    first = Lines(epath.Path(tmp_path), 0)
    for step in (1, 2, 3):
        first.scalars(step, {"loss": step / 2})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed there
    second = Lines(epath.Path(tmp_path), 2)
    second.scalars(3, {"loss": 9.0})
    assert rows() == [
        '{"step": 1, "loss": 0.5}',
        '{"step": 2, "loss": 1.0}',
        '{"step": 3, "loss": 9.0}',
    ]
    second.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_holds_numbers_and_pictures_and_forgets_what_is_made_again(tmp_path):
    board = TensorBoard(epath.Path(tmp_path), 0)
    board.scalars(3, {"loss": 0.25})
    board.image(3, "samples", np.full((4, 6, 3), 200, np.uint8))
    board.close()
    found = {v.tag: v for e in events(tmp_path) for v in e.summary.value}
    assert found["loss"].simple_value == 0.25
    assert (found["samples"].image.height, found["samples"].image.width) == (4, 6)
    TensorBoard(epath.Path(tmp_path / "again"), 2).close()
    starts = [e for e in events(tmp_path / "again") if e.session_log.status == 1]
    assert [e.step for e in starts] == [3]


def test_pictures_are_files_too(tmp_path):
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    lines = Lines(epath.Path(tmp_path), 0)
    lines.image(7, "samples", pixels)
    lines.close()
    with Image.open(tmp_path / "samples" / "7.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_weights_and_biases_goes_on_with_the_same_run(inputs, tmp_path, monkeypatch):
    told = []

    def init(**settings):
        told.append(settings)
        return types.SimpleNamespace(
            log=lambda values, step: told.append((step, values)),
            finish=lambda: told.append("finished"),
        )

    fake = types.SimpleNamespace(init=init, Image=lambda pixels: ("image", pixels.shape))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = toy_run(*inputs, tmp_path, report=ReportConfig(wandb="faces"))
    for _ in range(2):
        sink = WandB(config)
        sink.scalars(2, {"loss": 0.5})
        sink.image(2, "samples", np.zeros((4, 6, 3), np.uint8))
        sink.close()
    assert told[0]["project"] == "faces"
    assert told[0]["resume"] == "allow"
    assert told[0]["id"] == told[4]["id"]
    assert told[1:4] == [(2, {"loss": 0.5}), (2, {"samples": ("image", (4, 6, 3))}), "finished"]


def test_without_weights_and_biases_it_says_what_to_install(inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        WandB(toy_run(*inputs, tmp_path, report=ReportConfig(wandb="faces")))


def test_a_folder_that_cannot_be_written_to_is_refused(inputs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to: .*: name another --out"):
        open_sinks(toy_run(*inputs, tmp_path / "file" / "run"), 0)


def test_the_line_is_short_and_in_the_units_of_its_size():
    speed = {"images_per_second": 123.456, "seconds_per_step": 0.0519, "waiting": 0.031}
    values = {"loss": 0.123456, "learning_rate": 1e-4, **speed, "mfu": 0.4149}
    expected = "loss 0.1235  learning_rate 0.0001  123 images/s  0.0519 s/step  MFU 41%"
    assert _line(values) == expected + "  data-wait 3%"
    told = [_duration(x) for x in (0.5, 99.5, 600, 7 * 3600)]
    assert told == ["0.5 s", "99.5 s", "10 min", "7.0 h"]

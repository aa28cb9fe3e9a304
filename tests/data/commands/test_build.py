"""`fmv2 data build`, as a shell runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data.codec import decode
from data.quiet_tfds import tfds
from fmv2.cli import main
from fmv2.tokens import Tokens
from tests.data.upstream.layouts import (
    ROOTS,
    box,
    edit,
    write_embedding,
    write_layout,
    write_list,
    write_picture,
    write_tokenizer,
)
from tests.data.upstream.test_records import cut, vast

pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")  # of protobuf, to TFDS

ITEMS = 6


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def words(tmp_path, tokenizer):
    """The command for the layout in tmp_path, which has six good items."""
    write_layout(tmp_path, ITEMS)
    roots = [f"--{root.replace('_', '-')}={tmp_path / root}" for root in ROOTS]
    return [
        *("data", "build", f"--json={tmp_path / 'list.json'}", *roots),
        *(f"--tokenizer={tokenizer}", f"--out={tmp_path / 'out'}", "--workers=1", "--size=64"),
    ]


@pytest.fixture
def run(words, capsys, monkeypatch):
    """Runs it: exit status and what went to standard error."""
    monkeypatch.setenv("COLUMNS", "400")

    def run(*more: str) -> tuple[int, str]:
        status = main([*words, *more]) or 0
        return status, capsys.readouterr().err

    return run


def read(out: Path) -> dict[str, dict]:
    """Every record by its key."""
    builder = tfds.builder_from_directory(out)
    found = [
        (split, record) for split in builder.info.splits for record in builder.as_data_source(split)
    ]
    return {record["key"].decode(): {**record, "split": split} for split, record in found}


def listed(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "problems.jsonl").read_text().splitlines()]


def test_a_layout_becomes_a_data_set(run, tmp_path, tokenizer):
    status, err = run("--validation=0.4")
    assert status == 0
    assert "records in" in err
    assert "records/s" in err
    records = read(tmp_path / "out")
    assert set(records) == {f"p{n % 2}/{n}.jpg" for n in range(ITEMS)}
    assert {record["split"] for record in records.values()} == {"train", "validation"}
    record = records["p1/3.jpg"]
    np.testing.assert_array_equal(
        record["image"], decode((tmp_path / "images/p1/3.jpg").read_bytes())
    )
    assert record["attribute_caption"].decode() == "a red hat"
    np.testing.assert_array_equal(record["attribute_masks"][..., 0], box((48, 40), 0, 8) > 127)
    assert np.argwhere(record["attribute_tokens"]).tolist() == [[0, n] for n in range(2, 8)]
    assert (record["emotion_caption"].decode(), record["emotion_count"]) == ("a smile", 1)
    assert (record["face_id"] == 4).all()
    assert np.isnan(record["landmarks"]).all()
    metadata = tfds.builder_from_directory(tmp_path / "out").info.metadata
    assert metadata["source"] == "upstream"
    assert metadata["tokenizer"] == Tokens.load(tokenizer).fingerprint
    assert "nothing was left to do" in run("--validation=0.4")[1]


def test_a_place_in_a_split_depends_on_the_key_alone(run, tmp_path):
    run("--validation=0.4")
    before = {key: record["split"] for key, record in read(tmp_path / "out").items()}
    content = json.loads((tmp_path / "list.json").read_text())
    write_list(tmp_path, content[:2:-1])
    run("--validation=0.4", f"--out={tmp_path / 'other'}")
    after = {key: record["split"] for key, record in read(tmp_path / "other").items()}
    assert after == {key: before[key] for key in after}
    assert len(after) == 3


def set_caption(root: Path) -> None:
    edit(root, 2, lambda item: item.update(face_emotion_caption=""))


def repeat_key(root: Path) -> None:
    content = json.loads((root / "list.json").read_text())
    write_list(root, [*content, content[2]])


def repeat_name(root: Path) -> None:
    path = root / "list.json"
    path.write_text(path.read_text().replace('{"image": "p0/2', '{"face": [], "image": "p0/2'))


FAULTS = {
    "missing picture": (lambda root: (root / "images/p0/2.jpg").unlink(), "2.jpg is missing"),
    "missing shading": (lambda root: (root / "shading/p0/2.jpg").unlink(), "2.jpg is missing"),
    "missing mask": (lambda root: (root / "masks/Emotion/2_mouth.png").unlink(), "is missing"),
    "truncated jpeg": (lambda root: cut(root / "images/p0/2.jpg"), "is cut short or damaged"),
    "mask of the wrong size": (
        lambda root: write_picture(root / "masks/Attribute/2_hat.png", box((40, 48), 0, 9)),
        "40×48 pixels and its image 48×40: expected the same, or both sides scaled alike",
    ),
    "empty mask": (
        lambda root: write_picture(
            root / "masks/Attribute/2_hat.png", np.zeros((40, 48), np.uint8)
        ),
        "is empty: expected white where the phrase's region is",
    ),
    "wrong embedding": (
        lambda root: write_embedding(root / "face_ids/f/2.pt", torch.ones(1, 256)),
        "holds (1, 256): expected a tensor (1, 512)",
    ),
    "nan embedding": (
        lambda root: write_embedding(root / "face_ids/f/2.pt", torch.full((1, 512), torch.nan)),
        "has numbers that are not finite",
    ),
    "empty caption": (set_caption, "face_emotion_caption is empty: describe the picture"),
    "vast picture": (lambda root: vast(root / "images/p0/2.jpg"), "expected at most 67108864"),
    "key twice": (repeat_key, "its image is an earlier item's too: keep one of them"),
    "name twice": (repeat_name, "a name comes twice in it: keep one of each"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_stops_with_one_line_or_is_skipped_and_listed(run, tmp_path, fault):
    damage, problem = FAULTS[fault]
    damage(tmp_path)
    name = "6 (p0/2.jpg)" if fault == "key twice" else "2 (p0/2.jpg)"
    status, err = run()
    assert status == 2
    assert err.startswith(f"fmv2 data build: item {name}: ")
    assert problem in err
    assert "--on-error skip" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out" / "dataset_info.json").exists()

    status, err = run("--on-error=skip")
    assert status == 0, err
    assert "1 items left out" in err
    (line,) = listed(tmp_path / "out")
    assert line["item"] == name
    assert problem in line["problem"]
    left_out = set() if fault == "key twice" else {"p0/2.jpg"}
    assert set(read(tmp_path / "out")) == {f"p{n % 2}/{n}.jpg" for n in range(ITEMS)} - left_out


def test_all_problems_are_told_before_anything_is_written(run, tmp_path):
    (tmp_path / "images/p0/2.jpg").unlink()
    (tmp_path / "masks/Emotion/4_mouth.png").unlink()
    (tmp_path / "face_ids/f/4.pt").unlink()
    set_caption(tmp_path)
    status, err = run()
    lines = err.splitlines()
    assert status == 2
    assert len(lines) == 4
    assert "in all 3 problems in 2 of 6 items" in lines[-1]
    assert len(listed(tmp_path / "out")) == 3
    assert not list((tmp_path / "out").glob("*.array_record*"))


def test_mended_items_are_taken_up_by_the_next_run(run, tmp_path):
    path = tmp_path / "images/p0/2.jpg"
    content = path.read_bytes()
    path.unlink()
    set_caption(tmp_path)
    assert run()[0] == 2
    path.write_bytes(content)
    edit(tmp_path, 2, lambda item: item.update(face_emotion_caption="a grin"))
    assert run()[0] == 0
    assert len(read(tmp_path / "out")) == ITEMS
    assert not (tmp_path / "out/problems.jsonl").exists()


def test_where_all_is_wrong_nothing_is_skipped(run, tmp_path):
    for path in (tmp_path / "shading").rglob("*.jpg"):
        path.unlink()
    status, err = run("--on-error=skip")
    assert status == 2
    assert "6 problems in 6 of 6 items" in err


@pytest.mark.parametrize("mode", ["stop", "skip"])
def test_a_list_that_cannot_be_read_is_refused(run, tmp_path, mode):
    path = tmp_path / "list.json"
    path.write_bytes(path.read_bytes().replace(b"a red hat", b"a r\xe9d hat"))
    status, err = run(f"--on-error={mode}")
    assert status == 2
    assert "not UTF-8" in err
    assert "save the file as UTF-8" in err
    assert err.count("\n") == 1


def test_bad_options_are_refused_all_at_once(run, tmp_path):
    status, err = run("--size=8", "--validation=1", f"--masks={tmp_path / 'nowhere'}")
    assert status == 2
    for part in ("--size is 8", "--validation is 1.0", "--masks", "there is no such folder"):
        assert part in err
    assert err.count("\n") == 1
    assert "--workers is 0: expected 1 or more" in run("--workers=0")[1]
    assert "in --runner-options" in run("--runner=FlinkRunner")[1]


def test_other_settings_for_the_same_folder_are_refused(run):
    assert run()[0] == 0
    status, err = run("--size=128")
    assert status == 2
    assert "size was 64 and is 128" in err


def test_killed_in_the_middle_it_ends_with_the_same_bytes(words, run, tmp_path):
    assert run(f"--out={tmp_path / 'whole'}", "--validation=0.4")[0] == 0
    picture, out = tmp_path / "images/p0/2.jpg", tmp_path / "out"
    content = picture.read_bytes()
    picture.unlink()
    os.mkfifo(picture)  # whoever reads it waits
    command = [Path(sys.executable).with_name("fmv2"), *words, "--validation=0.4"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        running, deadline = out / ".building" / "running", time.monotonic() + 60
        while not any(path.stat().st_size for path in running.glob("*.progress")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    picture.unlink()
    picture.write_bytes(content)
    assert run("--validation=0.4")[0] == 0
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name

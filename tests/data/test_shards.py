"""Writing: what is written is what a reader gets, and an interruption leaves no trace."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data import beam, shards
from data.ledger import Ledger
from data.quiet_tfds import tfds
from fmv2.errors import UserError
from tests.data.fake_source import FakeSource

ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Written in one go; not to be written to."""
    out = tmp_path_factory.mktemp("shards") / "whole"
    summary = shards.write(FakeSource(), out)
    assert summary.records == {"train": 8, "validation": 2}
    assert summary.written == 10
    return out


READER = """
import sys
import numpy as np
import tensorflow_datasets as tfds
from data.codec import decode
from data.schema import CAPTION_KINDS
from tests.data.fake_source import record

builder = tfds.builder_from_directory(sys.argv[1])
assert builder.info.metadata["tokenizer"] == "abc", builder.info.metadata
seen = []
for split, count in (("train", 8), ("validation", 2)):
    source = builder.as_data_source(split)
    assert len(source) == count == builder.info.splits[split].num_examples
    for found in source:
        item = int(found["key"].decode().removeprefix("fake/"))
        seen.append(item)
        wanted = record(item)
        for name in ("image", "face", "shading"):
            np.testing.assert_array_equal(found[name], decode(getattr(wanted, name)), name)
        for kind in CAPTION_KINDS:
            caption = wanted.captions[kind]
            n = len(caption.masks)
            assert found[f"{kind}_caption"].decode() == caption.text
            assert found[f"{kind}_count"] == n
            planes = found[f"{kind}_masks"][..., 0]
            bits = [(planes >> k) & 1 for k in range(8)]
            for k in range(8):
                np.testing.assert_array_equal(bits[k], caption.masks[k] if k < n else 0 * planes)
            tokens = found[f"{kind}_tokens"]
            assert (tokens.dtype, tokens.shape) == (np.bool_, (8, 77))
            np.testing.assert_array_equal(tokens[:n], caption.tokens)
            assert not tokens[n:].any()
        for name in ("face_id", "landmarks"):
            assert found[name].dtype == np.float32
            np.testing.assert_array_equal(found[name], getattr(wanted, name))
        labels = decode(wanted.optional["labels"], channels=1)
        np.testing.assert_array_equal(found["labels"][..., 0], labels)
        assert found["latent_moments"].dtype == np.float16
        np.testing.assert_array_equal(found["latent_moments"], wanted.optional["latent_moments"])
        for name, value in found["coefficients"].items():
            np.testing.assert_array_equal(value, wanted.optional[f"coefficients/{name}"])
        assert found["factors"]["smile"] == wanted.factors["smile"]
        assert found["factors"]["person"] == wanted.factors["person"]
        assert builder.info.features["factors"]["hat"].int2str(found["factors"]["hat"]) == "cap"
        compared = {"key", "image", "face", "shading", "face_id", "landmarks", "labels",
                    "latent_moments", "coefficients", "factors"}
        parts = ("caption", "masks", "tokens", "count")
        compared |= {f"{kind}_{part}" for kind in CAPTION_KINDS for part in parts}
        assert set(found) == compared
assert seen == list(range(10)), seen
assert "tensorflow" not in sys.modules
print("equal")
"""


def test_plain_tfds_reads_every_field_without_tensorflow(whole):
    run = subprocess.run(
        [sys.executable, "-c", READER, whole], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.stdout.splitlines()[-1:] == ["equal"], run.stderr


def test_the_folder_holds_the_data_set_and_nothing_else(whole):
    assert sorted(path.name for path in whole.iterdir()) == [
        "dataset_info.json",
        "factors-hat.labels.txt",
        "features.json",
        "fmv2-train.array_record-00000-of-00003",
        "fmv2-train.array_record-00001-of-00003",
        "fmv2-train.array_record-00002-of-00003",
        "fmv2-validation.array_record-00000-of-00001",
        "metadata.json",
        "shards.json",
    ]


def test_a_second_run_does_nothing_and_says_so(whole):
    times = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    summary = shards.write(FakeSource(), whole, before=lambda: pytest.fail("asked for nothing"))
    assert (summary.written, summary.records) == (0, {"train": 8, "validation": 2})
    assert "nothing was left to do" in summary.describe(whole)
    assert times == {path: path.stat().st_mtime_ns for path in whole.iterdir()}


def test_two_processes_write_the_same_bytes_as_one(whole, tmp_path):
    shards.write(FakeSource(), tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == contents(whole)


def test_killed_again_and_again_it_ends_with_the_same_bytes(whole, tmp_path):
    out = tmp_path / "killed"
    code = (
        "from data import shards; from tests.data.fake_source import FakeSource; "
        f"shards.write(FakeSource(pause=0.2), {str(out)!r})"
    )
    moments = (  # shard in work, its items done so far
        ("fmv2-train.array_record-00000-of-00003", 1),
        ("fmv2-validation.array_record-00000-of-00001", 2),
    )
    for file, items in moments:
        progress = out / ".building" / "running" / f"{file}.progress"
        with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
            while process.poll() is None:
                if progress.exists() and progress.stat().st_size >= items:
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.005)
        assert process.returncode == -signal.SIGKILL
        assert not (out / "shards.json").exists()
    done = {path.name for path in (out / ".building").glob("fmv2*.json")}
    assert done
    summary = shards.write(FakeSource(), out)
    assert summary.written < 10
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("step", ["report", "finish", "clean"])
def test_stopped_while_finishing_it_ends_with_the_same_bytes(whole, tmp_path, monkeypatch, step):
    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, step, fail)
        with pytest.raises(MemoryError):
            shards.write(FakeSource(), tmp_path / "out")
    assert shards.write(FakeSource(), tmp_path / "out").written == 0
    assert contents(tmp_path / "out") == contents(whole)


def test_ctrl_c_stops_in_order_and_the_next_run_goes_on(whole, tmp_path, capfd):
    with pytest.raises(KeyboardInterrupt):
        shards.write(FakeSource(interrupted=(4,)), tmp_path / "out")
    assert capfd.readouterr().err.count("stopping: each worker first ends") == 1
    assert not (tmp_path / "out" / "shards.json").exists()
    assert shards.write(FakeSource(), tmp_path / "out").written == 7  # the first shard was whole
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_lost_shard_is_written_again(whole, tmp_path, damage):
    out = tmp_path / "out"
    shards.write(FakeSource(), out)
    shard = out / "fmv2-train.array_record-00001-of-00003"
    shard.unlink() if damage == "gone" else os.truncate(shard, 1000)
    assert shards.write(FakeSource(), out).written == 2
    assert contents(out) == contents(whole)


def test_what_cannot_be_a_record_is_listed_and_what_was_mended_is_counted(tmp_path):
    source = FakeSource(skipped=(1, 9), mended=(2, 3))
    summary = shards.write(source, tmp_path)
    assert summary.records == {"train": 7, "validation": 1}
    assert (summary.skipped, summary.mended) == (2, {"masks dropped": 4})
    lines = [json.loads(line) for line in (tmp_path / "problems.jsonl").read_text().splitlines()]
    assert lines == [
        {"item": "1", "problem": "cut short"},
        {"item": "9", "problem": "cut short"},
    ]
    described = summary.describe(tmp_path)
    assert "2 items left out" in described
    assert "4 masks dropped" in described
    assert shards.write(source, tmp_path)[:3] == summary[:3]


@pytest.mark.filterwarnings("ignore:label:DeprecationWarning")  # of protobuf, to TFDS
def test_an_empty_shard_is_read_over_and_an_empty_split_is_not_there(tmp_path):
    shards.write(FakeSource(skipped=(3, 4, 8, 9)), tmp_path)
    builder = tfds.builder_from_directory(tmp_path)
    assert list(builder.info.splits) == ["train"]
    keys = [record["key"] for record in builder.as_data_source("train")]
    assert keys == [f"fake/{item}".encode() for item in (0, 1, 2, 5, 6, 7)]


def test_nothing_left_is_refused(tmp_path):
    with pytest.raises(UserError, match="all 10 items were left out"):
        shards.write(FakeSource(skipped=tuple(range(10))), tmp_path)


def test_an_input_that_must_stop_the_run_comes_back_as_its_one_line(whole, tmp_path):
    with pytest.raises(UserError) as caught:
        shards.write(FakeSource(refused=(4,)), tmp_path / "out")
    assert str(caught.value) == "item 4: the picture is missing: put it there"
    assert shards.write(FakeSource(), tmp_path / "out").written == 7
    assert contents(tmp_path / "out") == contents(whole)


def test_another_data_set_in_the_folder_is_refused_with_the_difference(whole, tmp_path):
    with pytest.raises(UserError, match=r"version was 0 and is 1.*free folder"):
        shards.write(FakeSource(version=1), whole)
    with pytest.raises(UserError, match="its inputs, or their places, have changed"):
        shards.write(FakeSource(shape=(("train", (1,)),)), whole)
    with pytest.raises(UserError):
        shards.write(FakeSource(refused=(4,)), tmp_path)  # the first shard is there
    with pytest.raises(UserError, match="version was 0 and is 1"):
        shards.write(FakeSource(version=1), tmp_path)


def test_a_folder_is_free_as_long_as_no_shard_is_there(whole, tmp_path):
    def stop():
        raise UserError("mend the list")

    with pytest.raises(UserError, match="mend the list"):
        shards.write(FakeSource(version=1), tmp_path, before=stop)
    shards.write(FakeSource(), tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"thesis\.tex.*free folder"):
        shards.write(FakeSource(), tmp_path)
    with pytest.raises(UserError, match=r"thesis\.tex: no folder: Not a directory"):
        shards.write(FakeSource(), tmp_path / "thesis.tex")
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        shards.write(FakeSource(), tmp_path / "thesis.tex" / "data")


def test_two_runs_at_once_are_refused(tmp_path):
    def meddle():
        with pytest.raises(UserError, match="another run is writing there"):
            shards.write(FakeSource(), tmp_path)

    shards.write(FakeSource(), tmp_path, before=meddle)


def test_what_beam_does_not_know_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--runner StoneRunner: "):
        shards.write(FakeSource(), tmp_path, runner="StoneRunner")
    with pytest.raises(UserError, match="Beam knows no --colour=red"):
        shards.write(FakeSource(), tmp_path, runner_options=("colour=red",))
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install 'fmv2\[prepare\]'"):
        shards.write(FakeSource(), tmp_path)


def test_any_runner_of_beam_can_be_named(whole, tmp_path):
    runner = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
    options = ("direct_running_mode=multi_threading", "--direct_num_workers=2")
    shards.write(FakeSource(), tmp_path / "out", runner=runner, runner_options=options)
    assert contents(tmp_path / "out") == contents(whole)


def test_shards_that_do_not_arrive_are_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(beam, "run", lambda *_: None)  # as of workers with a disk of their own
    with pytest.raises(UserError, match=r"4 of 4 shards did not arrive.*they share"):
        shards.write(FakeSource(), tmp_path)


class Bucket(MemoryFileSystem):
    """Google's storage, as far as fsspec shows it: no folders but those that hold something."""

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs://"))

    def makedirs(self, path, exist_ok=False):
        pass


def test_a_bucket_gets_the_same_bytes(whole, monkeypatch):
    of = fsspec.filesystem
    bucket = Bucket()
    monkeypatch.setattr(
        fsspec, "filesystem", lambda name, **_: bucket if name == "gcs" else of(name)
    )
    with pytest.raises(UserError, match="item 4"):
        shards.write(FakeSource(refused=(4,)), "gs://bucket/out")
    assert shards.write(FakeSource(), "gs://bucket/out").written == 7
    found = {path.removeprefix("/bucket/out/"): bucket.cat(path) for path in bucket.find("/bucket")}
    assert found == contents(whole)
    assert shards.write(FakeSource(), "gs://bucket/out").written == 0

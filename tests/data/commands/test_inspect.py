import dataclasses

import pytest
from PIL import Image

from data.commands import inspect as command
from fmv2.cli import main
from tests.data.faces import EVERYTHING, Words, face_record, write_dataset


@pytest.fixture(autouse=True)
def _embedded(monkeypatch):
    """The embedded tokenizer is the data sets' own."""
    monkeypatch.setattr(command.Tokens, "load", lambda folder: Words(), raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("d") / "set"
    return write_dataset(path, {"train": (5,), "test": (2,)}, schema=EVERYTHING)


def run(capsys, *args) -> tuple[int | None, str]:
    status = main(["data", "inspect", *map(str, args)])
    written = capsys.readouterr()
    return status, written.out + written.err


def test_everything_worth_knowing_is_said(folder, capsys):
    status, said = run(capsys, folder)
    assert status is None
    for part in ("coefficients/pose", "factors/hat", "one of none, cap", "bit planes"):
        assert part in said
    assert Words().fingerprint + ": the embedded default's" in said
    assert "split train, all 5 records read" in said
    assert "pictures of 32×32 (5)" in said
    assert "a 5, red 5, hat 5" in said
    assert "none 3, cap 2" in said


def test_a_large_split_is_sampled(folder, capsys, monkeypatch):
    monkeypatch.setattr(command, "_MOST", 3)
    assert "split train, 3 of 5 records read" in run(capsys, folder)[1]
    assert "split test, all 2 records read" in run(capsys, folder, "--split", "test")[1]


def test_a_sheet_is_drawn_but_never_over_a_file(folder, capsys, tmp_path):
    sheet = tmp_path / "sheet.png"
    status, said = run(capsys, folder, "--png", sheet, "--count", "3")
    assert status is None
    assert f"{sheet}: 3 records" in said
    with Image.open(sheet) as saved:
        assert saved.height == 34 + 3 * 220
    before = sheet.read_bytes()
    status, said = run(capsys, folder, "--png", sheet, "--count", "0")
    assert status == 2
    assert "is there already: delete it or name another file" in said
    assert "--count is 0" in said
    assert sheet.read_bytes() == before
    assert "there is no folder" in run(capsys, folder, "--png", tmp_path / "no" / "a.png")[1]


def test_another_tokenizer(folder, capsys, tmp_path, monkeypatch):
    other = Words(("", "left"))
    monkeypatch.setattr(command.Tokens, "load", lambda folder: other)
    status, said = run(capsys, folder)
    assert status is None
    assert "not the embedded default's; name its folder" in said
    assert "not known" in said
    status, said = run(capsys, folder, "--png", tmp_path / "sheet.png")
    assert status == 2
    assert "--tokenizer" in said
    status, said = run(capsys, folder, "--tokenizer", tmp_path)
    assert status == 2
    assert f"has token masks of the tokenizer {Words().fingerprint}" in said


def test_a_damaged_record_is_named(tmp_path, capsys):
    def damaged(number, schema):
        record = face_record(number, schema)
        return dataclasses.replace(record, image=b"no picture") if number == 1 else record

    folder = write_dataset(tmp_path / "set", {"train": (2,)}, record=damaged)
    status, said = run(capsys, folder)
    assert status == 2
    assert "record 1 ('person-1'): 10 bytes are not a picture" in said
    assert "Traceback" not in said

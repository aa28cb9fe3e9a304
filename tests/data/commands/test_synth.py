"""`fmv2 data synth`, as a shell runs it."""

import pytest

from data.quiet_tfds import tfds
from fmv2.cli import main
from fmv2.tokens import EMBEDDED, Tokens


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Runs it: exit status and what went to standard error."""
    monkeypatch.setenv("COLUMNS", "400")

    def run(**options) -> tuple[int, str]:
        options = {"count": 3, "size": 32, "seed": 5, "workers": 1, "out": "a"} | options
        options["out"] = tmp_path / options["out"]
        words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        status = main(["data", "synth", *words]) or 0
        return status, capsys.readouterr().err

    return run


@pytest.mark.filterwarnings("ignore:label:DeprecationWarning")  # of protobuf, to TFDS
def test_the_same_seed_makes_the_same_bytes_and_another_others(run, tmp_path):
    assert run()[0] == 0
    builder = tfds.builder_from_directory(tmp_path / "a")
    assert builder.info.metadata["source"] == "synth"
    assert builder.info.metadata["tokenizer"] == Tokens.load(EMBEDDED).fingerprint
    records = [r for split in builder.info.splits for r in builder.as_data_source(split)]
    assert len(records) == 3
    assert {record["image"].shape for record in records} == {(32, 32, 3)}
    assert "nothing was left to do" in run()[1]
    run(out="b")
    run(out="c", seed=6)
    same, other = (
        [
            path.read_bytes() == (tmp_path / name / path.name).read_bytes()
            for path in sorted((tmp_path / "a").glob("*.array_record*"))
        ]
        for name in ("b", "c")
    )
    assert all(same)
    assert not any(other)
    status, err = run(seed=7)
    assert status == 2
    assert "seed was 5 and is 7" in err


def test_bad_values_are_refused_all_at_once(run):
    status, err = run(count=0, size=100, seed=-1, images_per_identity=0)
    assert status == 2
    assert err == (
        "fmv2 data synth: --count is 0: expected 1 or more; --seed is -1: expected 0 or more; "
        "--images-per-identity is 0: expected 1 or more; --size is 100: expected a multiple of 8 "
        "from 32 on, such as 128\n"
    )
    assert "--size is 24" in run(size=24)[1]
    assert "--workers is 0" in run(workers=0)[1]
    alone = run(faces="other", images_per_identity=1)[1]
    assert "--faces other needs --images-per-identity of 2 or more" in alone

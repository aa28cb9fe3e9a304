"""`fmv2 data encode`, as a shell runs it."""

from fmv2.assets import TINY
from fmv2.cli import main


def test_bad_values_are_refused_all_at_once(tmp_path, capsys):
    places = ["--model", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    assert main(["data", "encode", str(tmp_path), "--size=100", *places]) == 2
    assert capsys.readouterr().err == (
        "fmv2 data encode: --size is 100: expected a multiple of 8 from 32 on, such as 512; "
        f"--model {tmp_path / 'none'}: no such folder: make one with fmv2 convert from-diffusers\n"
    )


def test_what_is_no_data_set_is_refused(tmp_path, capsys):
    places = ["--model", str(TINY), "--out", str(tmp_path / "out")]
    assert main(["data", "encode", str(tmp_path / "none"), *places]) == 2
    assert "none: no such folder; `fmv2 data synth`" in capsys.readouterr().err

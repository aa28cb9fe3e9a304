"""What a model card tells of its runs is what the runs did."""

import json

import numpy as np

import train.commands.tiny_base as command
from convert import runs
from convert.folder import assemble, read
from tests.train.test_chain import parts  # noqa: F401  (a fixture)
from train.chain import train_chain
from train.recipe import recipe


def test_a_card_tells_what_was_done(parts, tmp_path):  # noqa: F811
    only = {"vae": parts["vae"]}
    assert train_chain(only, tmp_path) == 0
    run = tmp_path / "vae"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    spent = sum(line["seconds_per_step"] for line in lines)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, "validation/loss": 0.125, "validation/kl": 2.0}) + "\n")
    told = recipe([run], "fmv2 train something")
    (row,) = [line for line in told.splitlines() if line.startswith("| `")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    config = runs.read_json(run, 2, runs.CONFIG)
    assert cells == [
        "`vae`", "vae", f"2 × {config['batch_size']}", "0.01 constant", "0", f"{spent / 3600:.2f}",
        "loss 0.125, kl 2",
    ]  # fmt: skip
    assert "fmv2 train something" in told


def test_the_base_is_written_with_head_and_recipe(parts, tmp_path, monkeypatch):  # noqa: F811
    given = {name: parts[name] for name in ("vae", "face")}
    monkeypatch.setattr(command, "PARTS", tuple(given))
    monkeypatch.setattr(command, "parts", lambda data, **asked: given)
    assert command.tiny_base(data="some/records", out=tmp_path, steps=2) == 0
    model = tmp_path / command.MODEL
    found = read(assemble([model]))
    assert found.vae is not None
    assert found.face_encoder is not None
    assert found.vae.decoder.conv_in.kernel[...].dtype == np.float16
    assert found.head is not None
    card = (model / "README.md").read_text()
    assert "fmv2 train tiny-base --data records --out " in card
    assert f"--out {tmp_path.name} --steps 2\n" in card
    assert "| `vae` |" in card
    assert "| `face` |" in card
    before = (model / "README.md").stat().st_mtime_ns
    assert command.tiny_base(data="some/records", out=tmp_path, steps=2) == 0  # all is there
    assert (model / "README.md").stat().st_mtime_ns == before

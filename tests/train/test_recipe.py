"""What a model card tells of its runs is what the runs did."""

import json

from convert import runs
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

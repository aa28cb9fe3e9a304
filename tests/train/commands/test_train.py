import json
import shutil

import pytest

from fmv2.cli import PRESETS, main
from tests.data.faces import write_dataset
from tests.train.toy import write_inputs
from train import run
from train.commands.presets import preset


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def _no_compute(monkeypatch):
    """What is refused is refused before a weight is read or a net made."""

    def computed(*_):
        raise AssertionError("the run has begun")

    monkeypatch.setattr(run, "load", computed)


def refused(capsys, *words: object) -> str:
    """The one line of a command that ends with status 2."""
    assert main([str(word) for word in words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def flags(inputs, tmp_path) -> list[object]:
    data, base = inputs
    small = ["--batch-size", 8, "--size", 64]
    return ["--data", data, "--base", base, "--out", tmp_path / "run", *small]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_module_that_says_what_it_is(name):
    config, about = preset(name)
    assert config.steps > 0
    assert "fmv2 train " + name.replace("-", "_") in about
    assert "result:" in about


def test_all_faults_are_named_at_once(inputs, tmp_path, capsys):
    line = refused(capsys, "train", "tiny", "--batch-size", 12, "--data", tmp_path / "none")
    assert line.startswith("fmv2 train tiny: --out, --base missing: this run needs --data, --out,")
    assert "12 samples per micro-batch do not divide among 8 devices" in line
    assert "make --batch-size a multiple of 64" in line  # one sample in eight shows a face
    assert "none: no such folder; `fmv2 data synth`" in line
    assert "adapter" not in line  # without a base nothing can be said of what it lacks


def test_a_mesh_that_is_not_the_machine_is_refused(inputs, tmp_path, capsys):
    line = refused(capsys, "train", "tiny-vae", *flags(inputs, tmp_path), "--mesh.fsdp", 3)
    assert "data any × fsdp 3 × tensor 1 does not lay out 8 devices" in line
    assert not (tmp_path / "run").exists()


def test_records_of_another_tokenizer_are_refused(inputs, tmp_path, capsys):
    other = write_dataset(tmp_path / "other", {"train": (8,)}, metadata={"tokenizer": "abc"})
    words = [*flags(inputs, tmp_path), "--data", other]
    line = refused(capsys, "train", "tiny-vae", *words)
    assert "has token masks of the tokenizer abc, but the model's is" in line


def test_a_base_that_lacks_something_is_refused(inputs, tmp_path, capsys):
    words = flags(inputs, tmp_path)
    line = refused(capsys, "train", "tiny", *words, "--batch-size", 64)
    assert "lacks adapter, shadingnet, unet, vae, text_encoder" in line
    recorded = [*words, "--batch-size", 64, "--objective.latents", "record"]
    assert "the model has no VAE" in refused(capsys, "train", "tiny", *recorded)
    broken = tmp_path / "broken"
    shutil.copytree(inputs[1], broken)
    shutil.rmtree(broken / "tokenizer")
    line = refused(capsys, "train", "tiny-vae", *words, "--base", broken)
    assert "broken: not a Stable Diffusion 1.x or 2.x folder: tokenizer/ is missing" in line
    line = refused(capsys, "train", "tiny-vae", *words, "--base", tmp_path / "none")
    assert "none: no such model folder" in line


def test_wandb_is_asked_for_before_it_is_needed(inputs, tmp_path, capsys):
    line = refused(capsys, "train", "tiny-vae", *flags(inputs, tmp_path), "--report.wandb", "faces")
    assert line.endswith("--report.wandb needs Weights & Biases: pip install wandb")


def test_a_misspelt_option_names_the_nearest(capsys):
    for words, meant in (
        (["train", "tiny", "--stesp", "3"], "--steps"),
        (["train", "tiny", "--optimizer.learnin-rate", "3"], "--optimizer.learning-rate"),
        (["train", "tinny"], "tiny"),
    ):
        with pytest.raises(SystemExit) as exit:
            main(words)
        assert exit.value.code == 2
        assert meant in capsys.readouterr().err


def test_dry_run_prints_config_and_mesh_and_begins_nothing(inputs, tmp_path, capsys):
    words = [*flags(inputs, tmp_path), "--mesh.fsdp", 2, "--optimizer.learning-rate", "3e-3"]
    assert main([str(word) for word in ("train", "tiny_vae", *words, "--dry-run")]) == 0
    out = capsys.readouterr().out
    config, end = json.JSONDecoder().raw_decode(out)
    assert config["optimizer"]["learning_rate"] == 3e-3
    assert config["batch_size"] == 8
    rest = out[end:].strip().splitlines()
    assert rest[0].startswith("mesh data 4 × fsdp 2 × tensor 1 of 8 × ")
    assert rest[-1] == "begins afresh"
    assert not (tmp_path / "run").exists()


def test_dry_run_refuses_what_the_run_would(inputs, tmp_path, capsys):
    line = refused(capsys, "train", "tiny", "--dry-run", *flags(inputs, tmp_path))
    assert "8 samples per micro-batch do not divide" in line

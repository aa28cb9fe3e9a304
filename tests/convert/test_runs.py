"""A training run's folder as a source of weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from diffusers import ControlNetModel, StableDiffusionPipeline
from safetensors.numpy import load_file

from convert import runs
from convert.folder import assemble, read
from fmv2.cli import main
from fmv2.errors import UserError
from train.checkpoint import About, Checkpoints
from train.optimizer import OptimizerConfig
from train.step import init_state


@pytest.fixture(scope="module")
def run(model, export, tmp_path_factory):
    """Two checkpoints of adapter, ShadingNet and face encoder; weights are 0 at step 3 and 1 at
    step 6, their running mean 2 and 3."""
    out = tmp_path_factory.mktemp("run")
    nets = {name: model.nets()[name] for name in ("adapter", "shadingnet", "face_encoder")}
    # Of the sizes alone; values below.
    state = init_state(nets, optax.identity(), OptimizerConfig(), seed=0)
    configs = {name: net.config for name, net in nets.items()}
    about = About(config={"base": str(export)}, inputs={}, nets=runs.describe(configs))

    def at(raw, mean):
        fill = jnp.full_like
        return type(state)(
            step=state.step,
            ok=state.ok,
            key=state.key,
            params=jax.tree.map(lambda x: fill(x, raw), state.params),
            stats=state.stats,
            optimizer=state.optimizer,
            ema=jax.tree.map(lambda x: fill(x, mean), state.params),
        )

    with Checkpoints(out, keep_last=9) as checkpoints:
        checkpoints.save(3, at(0.0, 2.0), b"{}", about)
        checkpoints.save(6, at(1.0, 3.0), b"{}", about)
    return out


@pytest.mark.parametrize(
    ("chosen", "value"),
    [({}, 3), ({"raw": True}, 1), ({"step": 3}, 2), ({"step": 3, "raw": True}, 0)],
)
def test_any_checkpoint_can_be_had_mean_or_raw(run, chosen, value):
    parts = runs.source(run, **chosen).parts
    for name in ("adapter", "shadingnet"):
        assert {float(x) for ref in parts[name].tensors.values() for x in ref.read().flat} == {
            value
        }


def test_the_folder_is_the_base_with_what_was_trained_and_loads_in_diffusers(
    run, export, model, tmp_path
):
    out = tmp_path / "model"
    assert main(["convert", "to-diffusers", str(run), str(out), "--step", "3", "--raw"]) is None
    assert {p.name for p in out.iterdir()} == {p.name for p in export.iterdir()} - {"model.bin"}
    for name in ("unet", "vae"):
        (file,) = (out / name).glob("*.safetensors")
        assert file.read_bytes() == (export / name / file.name).read_bytes()
    pipeline = StableDiffusionPipeline.from_pretrained(out, local_files_only=True)
    assert pipeline.unet is not None
    shadingnet = ControlNetModel.from_pretrained(out / "shadingnet")
    assert all((weight == 0).all() for weight in shadingnet.state_dict().values())
    # Names, layouts and shapes are those of the model that the run began with.
    again = read(assemble([out]))
    assert again.adapter.config == model.adapter.config
    assert jax.tree.structure(again.shadingnet) == jax.tree.structure(model.shadingnet)
    # Running statistics belong to the weights.
    kept = load_file(next((out / "face_encoder").iterdir()))["bn1.running_mean"]
    before = load_file(next((export / "face_encoder").iterdir()))["bn1.running_mean"]
    np.testing.assert_array_equal(kept, before)


def test_layouts_come_back(model, export, tmp_path):
    """Weights that are not all alike, through the checkpoint and under their torch names."""
    nets = {"shadingnet": model.shadingnet, "face_encoder": model.face_encoder}
    state = init_state(nets, optax.identity(), OptimizerConfig(ema_decay=None), seed=0)
    configs = {name: net.config for name, net in nets.items()}
    about = About(config={"base": str(export)}, inputs={}, nets=runs.describe(configs))
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(1, state, b"{}", about)
    found = runs.source(tmp_path)
    assert found.kind == "training run, step 1, weights as they are"  # it keeps no mean
    for name in nets:
        (file,) = (export / name).glob("*.safetensors")
        expected = load_file(file)
        tensors = found.parts[name].tensors
        assert tensors.keys() == expected.keys()
        for key, ref in tensors.items():
            assert ref.shape == expected[key].shape
            np.testing.assert_array_equal(ref.read(), expected[key])


def test_inspect_says_which_checkpoint_it_is(run, capsys):
    assert main(["convert", "inspect", str(run)]) == 0
    assert f"{run}: training run, step 6, running mean of the weights" in capsys.readouterr().out


def test_what_cannot_be_exported_is_refused(run, export, tmp_path, capsys):
    for words, complaint in (
        (["--step", "5"], f"{run}: no checkpoint of step 5: there are [3, 6]"),
        (["--base", str(tmp_path / "none")], "is not there: say where it is with --base"),
    ):
        out = str(tmp_path / "out")
        assert main(["convert", "to-diffusers", str(run), out, *words]) == 2
        assert complaint in capsys.readouterr().err
    assert main(["convert", "to-diffusers", str(export), str(tmp_path / "out"), "--raw"]) == 2
    assert "is no training run: leave out --step, --raw" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="this training run has no checkpoint yet"):
        runs.source(tmp_path / "new")


def test_a_damaged_checkpoint_is_named(run, tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "6"
    folder.parent.mkdir(parents=True)
    (run / "checkpoints" / "6").rename(folder)
    try:
        (folder / "nets" / "metadata").write_text(json.dumps({"adapter": 1})[:5])
        with pytest.raises(UserError, match="nets/metadata: the checkpoint is damaged"):
            runs.source(tmp_path / "run")
    finally:
        folder.rename(run / "checkpoints" / "6")

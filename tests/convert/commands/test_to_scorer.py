"""`fmv2 convert to-scorer`: a run's scorer as a folder, and what is refused."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from convert import runs
from fmv2.cli import main
from fmv2.metrics.scorer import Scorer, load_scorer
from fmv2.models.coefficient_encoder import CoefficientEncoderConfig
from train.checkpoint import About, Checkpoints
from train.heads import ClassCenters, ClassCentersConfig
from train.objectives.scorer import Scorer as Objective
from train.optimizer import OptimizerConfig
from train.step import init_state

TRUNK = dataclasses.replace(
    CoefficientEncoderConfig.tiny(), layers=(1, 1, 1, 1), widths=(2, 2, 2, 2), image_size=32
)


def save(out, nets):
    """A checkpoint at step 2 and one at step 4, in which everything is twice as large."""
    configs = runs.describe({name: net.config for name, net in nets.items()})
    about = About(config={"base": None}, inputs={}, nets=configs)
    state = init_state(nets, optax.identity(), OptimizerConfig(ema_decay=None), seed=0)
    double = {k: jax.tree.map(lambda x: 2 * x, getattr(state, k)) for k in ("params", "stats")}
    with Checkpoints(out, keep_last=9) as checkpoints:
        checkpoints.save(2, state, b"{}", about)
        checkpoints.save(4, dataclasses.replace(state, **double), b"{}", about)
    return out


@pytest.fixture(scope="module")
def scorer():
    return Scorer(Objective(trunk=TRUNK).fresh({})["scorer"], rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def run(scorer, tmp_path_factory):
    return save(tmp_path_factory.mktemp("run"), {"scorer": scorer})


@pytest.mark.parametrize(("words", "times"), [(["--step", "2"], 1), ([], 2)])
def test_the_folder_is_the_scorer_of_that_checkpoint(scorer, run, tmp_path, words, times):
    out = tmp_path / "deep" / "scorer"
    assert main(["convert", "to-scorer", str(run), str(out), *words]) is None
    assert {path.name for path in out.parent.iterdir()} == {"scorer"}  # nothing is left about
    found = load_scorer(out)
    assert found.config == scorer.config
    leaves = (jax.tree.leaves(nnx.state(net)) for net in (found, scorer))
    for mine, its in zip(*leaves, strict=True):
        np.testing.assert_allclose(mine, times * its, rtol=1e-3)


def test_what_cannot_be_exported_is_refused(run, tmp_path, capsys):
    config = ClassCentersConfig(classes=2, embedding_size=3)
    other = save(tmp_path / "other", {"class_centers": ClassCenters(config, rngs=nnx.Rngs(0))})
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    out = tmp_path / "out"
    for source, target, complaint in (
        (run, tmp_path / "taken", "exists and is not an empty folder"),
        (tmp_path / "taken", out, "is no training run"),
        (other, out, "this run trains no scorer, but class_centers"),
    ):
        assert main(["convert", "to-scorer", str(source), str(target)]) == 2
        assert complaint in capsys.readouterr().err
    assert main(["convert", "to-scorer", str(run), str(out), "--step", "3"]) == 2
    assert "no checkpoint of step 3: there are [2, 4]" in capsys.readouterr().err
    assert not out.exists()


def test_it_is_no_part_of_a_model_folder(run, tmp_path, capsys):
    assert main(["convert", "to-diffusers", str(run), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "trained scorer, which is no part of a model folder" in said
    assert "fmv2 convert to-scorer" in said
    assert not (tmp_path / "out").exists()

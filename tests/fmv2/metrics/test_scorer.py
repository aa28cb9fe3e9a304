"""The scorer as a net and as a folder."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from fmv2.errors import UserError
from fmv2.metrics.scorer import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Reading,
    Scorer,
    ScorerConfig,
    load_scorer,
    write_scorer,
)
from fmv2.models.coefficient_encoder import CoefficientEncoderConfig

TINY = ScorerConfig(
    trunk=dataclasses.replace(
        CoefficientEncoderConfig.tiny(), layers=(1, 1, 1, 1), widths=(4, 4, 4, 6), image_size=32
    ),
    channels=5,
    identity=("width", "length"),
    expression=("smile",),
    classes={"tone": ("pale", "tan", "dark"), "hat": ("none", "cap")},
    person=("tone",),
    camera=(5.0, 0.1, 0.2),
    camera_spread=(2.0, 0.5, 0.25),
)


def made():
    """A scorer, its norms' statistics not those that it begins with."""
    scorer = Scorer(TINY, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    stats = nnx.state(scorer, nnx.BatchStat)
    nnx.update(scorer, jax.tree.map(lambda x: x + 0.3 * rng.random(x.shape, "f"), stats))
    return scorer


def arrays(scorer):
    state = nnx.to_flat_state(nnx.state(scorer))
    return {".".join(map(str, path)): np.asarray(x[...]) for path, x in state}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("scorer")
    write_scorer(TINY.to_config(), arrays(made()), path)
    return path


def images(count=3):
    return jnp.asarray(np.random.default_rng(1).random((count, 32, 32, 3), "f"))


def test_it_reads_each_thing():
    found = nnx.jit(lambda net, x: net(x))(made(), images())
    shapes = {k: v.shape[1:] for k, v in found._asdict().items() if k != "logits"}
    assert shapes == {
        "identity": (2,), "expression": (1,), "pose": (6,), "camera": (3,), "light": (9, 3),
    }  # fmt: skip
    assert {k: v.shape for k, v in found.logits.items()} == {"tone": (3, 3), "hat": (3, 2)}
    numbers = [x.reshape(3, -1) for x in jax.tree.leaves(found)]
    assert sum(x.shape[1] for x in numbers) == sum(TINY.counts)
    with pytest.raises(ValueError, match=r"pictures must be \(b, 32, 32, 3\), got"):
        made()(jnp.zeros((1, 16, 16, 3)))


def test_the_camera_is_told_from_the_middle_one_in_spreads():
    still = made()
    nnx.update(still.out, jax.tree.map(jnp.zeros_like, nnx.state(still.out)))
    np.testing.assert_array_equal(still(images(1)).camera, np.array([[5.0, 0.1, 0.2]], "f"))
    nnx.update(still.out, {"bias": nnx.Param(jnp.ones_like(still.out.bias[...]))})
    np.testing.assert_allclose(still(images(1)).camera, [[7.0, 0.6, 0.45]], rtol=1e-6)


def test_the_embedding_is_the_person_alone():
    rng = np.random.default_rng(0)

    def reading(tone, hat, **fields):
        given = {name: rng.normal(size=(1, 2)) for name in ("expression", "pose", "camera")}
        logits = {"tone": jnp.array([tone], "f"), "hat": jnp.array([hat], "f")}
        return Reading(light=rng.normal(size=(1, 9, 3)), logits=logits, **given, **fields)

    scorer, identity = made(), jnp.array([[1.0, -2.0]])
    one = scorer.embedding(reading([50, 0, 0], [1, 2], identity=identity))
    np.testing.assert_allclose(one, [[1, -2, 1.0, -0.5, -0.5]], atol=1e-5)
    other = scorer.embedding(reading([50, 0, 0], [2, 1], identity=identity))
    np.testing.assert_array_equal(one, other)
    # What is not known leaves nothing.
    unknown = scorer.embedding(reading([3, 3, 3], [2, 1], identity=identity))
    np.testing.assert_allclose(unknown, [[1, -2, 0, 0, 0]], atol=1e-6)


def test_a_folder_comes_back(folder):
    loaded = load_scorer(folder)
    assert loaded.config == TINY
    run = nnx.jit(lambda net, x: jax.tree.leaves(net(x)))
    for found, expected in zip(run(loaded, images()), run(made(), images()), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-2)  # kernels were float16
    kept = load_file(folder / WEIGHTS_FILE)
    assert {x.dtype.name for x in kept.values() if x.ndim > 1} == {"float16"}
    np.testing.assert_array_equal(kept["encoder.bn1.var"], made().encoder.bn1.var[...])


def test_what_does_not_fit_is_named(folder, tmp_path):
    broken = tmp_path / "broken"
    with pytest.raises(UserError, match=f"{broken}: no scorer"):
        load_scorer(broken)
    shutil.copytree(folder, broken)
    (broken / WEIGHTS_FILE).write_bytes(b"cut")
    with pytest.raises(UserError, match=f"{broken}: no scorer"):
        load_scorer(broken)

    weights = {k: v for k, v in arrays(made()).items() if k != "out.bias"}
    weights |= {"hidden.bias": np.zeros(3, "f"), "more": np.zeros(1, "f")}
    complaint = r"out.bias is missing; more is unknown; hidden.bias is \(3,\), expected \(12,\)"
    with pytest.raises(UserError, match=complaint):
        write_scorer(TINY.to_config(), weights, broken)
    save_file(weights, broken / WEIGHTS_FILE)
    with pytest.raises(UserError, match=complaint):
        load_scorer(broken)

    for change, complaint in (
        ({"person": ["hair"]}, "person names hair"),
        ({"classes": None}, "not understood"),
        ({"trunk": {"layers": [1, 1, 1]}}, "not understood|layers must be"),
    ):
        config = json.loads((folder / CONFIG_FILE).read_text())
        (broken / CONFIG_FILE).write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=complaint):
            load_scorer(broken)

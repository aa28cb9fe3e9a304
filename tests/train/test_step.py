"""The step on small objectives: what is differentiated, what stops it, and what it keeps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fmv2.diffusion.schedule import NoiseSchedule
from tests.train.batches import changed, face_batch
from train.optimizer import OptimizerConfig, ema_decay, make_optimizer
from train.step import init_state, make_step, split

SCHEDULE = NoiseSchedule()
BATCH, _ = face_batch(8, size=16, face=8)
CONFIG = OptimizerConfig(learning_rate=0.1, weight_decay=0.1, clip_norm=1.0, ema_decay=0.5)


class Regression:
    """A trained layer behind a frozen one, against the landmarks; a term for each."""

    trained = ("net",)
    frozen = ("encoder",)
    extras = ()

    def grids(self, size: int) -> tuple[int, ...]:
        return ()

    def fresh(self, configs: Any) -> Any:
        return {}

    def loss(self, trained, frozen, batch, key, schedule):
        seen = frozen["encoder"](batch.face_id)
        wanted = batch.landmarks.reshape(-1, 10)
        error = jnp.mean(jnp.square(trained["net"](seen) - wanted))
        return error, {"loss": error, "error": error}


class Noisy(Regression):
    """With chance in it."""

    def loss(self, trained, frozen, batch, key, schedule):
        loss, terms = super().loss(trained, frozen, batch, key, schedule)
        drawn = jax.random.normal(key, ())
        return loss + drawn, {**terms, "drawn": drawn}


class Rooted(Regression):
    """With a root that has no gradient where a batch drops an identity, and else adds nothing."""

    def loss(self, trained, frozen, batch, key, schedule):
        loss, terms = super().loss(trained, frozen, batch, key, schedule)
        gate = 1.0 - batch.id_dropped.any()
        loss = loss + 0 * jnp.linalg.norm(gate * trained["net"].linear.kernel[...])
        return loss, {**terms, "loss": loss}


class Net(nnx.Module):
    """A linear layer, with a norm that gathers statistics if asked."""

    def __init__(self, norm: bool = False):
        rngs = nnx.Rngs(1)
        self.linear = nnx.Linear(16, 10, rngs=rngs)
        self.norm = nnx.BatchNorm(10, momentum=0.9, rngs=rngs) if norm else None

    def __call__(self, x):
        x = self.linear(x)
        return x if self.norm is None else self.norm(x)


def frozen_nets():
    return {"encoder": nnx.Linear(512, 16, rngs=nnx.Rngs(0))}


def ready(config=CONFIG, objective=None, norm=False):
    """A jitted step that gives its state away, and the first state."""
    nets = {"net": Net(norm)}
    optimizer = make_optimizer(config, 100)
    step = make_step(objective or Regression(), split(nets)[0], optimizer, config, SCHEDULE)
    return jax.jit(step, donate_argnums=0), init_state(nets, optimizer, config, seed=0)


def host(tree):
    """In NumPy, so that it outlives its donation."""
    keys = jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )
    return jax.tree.map(np.array, keys)


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_one_step_is_the_gradients_update():
    step, state = ready()
    before = host(state)
    frozen = frozen_nets()
    state, metrics = step(state, frozen, BATCH)
    seen = np.array(frozen["encoder"](jnp.asarray(BATCH.face_id)))
    linear = before.params["net"]["linear"]
    kernel, bias = (np.array(linear[name][...]) for name in ("kernel", "bias"))
    error = seen @ kernel + bias[None] - BATCH.landmarks.reshape(8, 10)
    gradient = {"kernel": seen.T @ error / 40, "bias": error.sum(0) / 40}
    norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
    assert metrics["loss"] == metrics["error"] == pytest.approx((error**2).mean(), rel=1e-5)
    assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert norm > 1
    for name, start in (("kernel", kernel), ("bias", bias)):
        clipped = gradient[name] / norm
        decay = 0.1 * start if name == "kernel" else 0
        expected = start - 0.1 * (clipped / (np.abs(clipped) + 1e-8) + decay)
        np.testing.assert_allclose(state.params["net"]["linear"][name][...], expected, atol=2e-6)
    assert state.step == 1
    assert metrics["ok"]


def test_only_what_learns_is_differentiated():
    """The gradient has the trained weights alone, and nothing of it is of a frozen one's shape."""
    step, state = ready()
    program = jax.make_jaxpr(step)(state, frozen_nets(), BATCH)
    assert jax.tree.structure(optax.tree.get(state.optimizer, "mu")) == jax.tree.structure(
        state.params
    )
    (inner,) = (equation.params["jaxpr"] for equation in program.eqns)
    made = [out.aval.shape for equation in inner.eqns for out in equation.outvars]
    assert (16, 10) in made  # the trained kernel's gradient
    assert (512, 16) not in made


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_equal_the_whole_batch(parts):
    whole, state = ready()
    cut, cut_state = ready(OptimizerConfig(**{**vars(CONFIG), "accumulation": parts}))
    for _ in range(3):
        state, metrics = whole(state, frozen_nets(), BATCH)
        cut_state, cut_metrics = cut(cut_state, frozen_nets(), BATCH)
    for name in ("loss", "error", "gradient_norm"):
        assert cut_metrics[name] == pytest.approx(float(metrics[name]), rel=1e-6)
    for a, b in zip(jax.tree.leaves(cut_state), jax.tree.leaves(state), strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max())


def test_micro_batches_and_steps_draw_anew_and_a_seed_draws_again():
    config = OptimizerConfig(**{**vars(CONFIG), "accumulation": 2})
    drawn = []
    for settings in (CONFIG, CONFIG, config):
        step, state = ready(settings, Noisy())
        for _ in range(3):
            state, metrics = step(state, frozen_nets(), BATCH)
            drawn.append(float(metrics["drawn"]))
    assert len(set(drawn[:3])) == 3
    assert drawn[3:6] == drawn[:3]
    first, second = (jax.random.normal(k, ()) for k in micro_keys(2))
    assert first != second
    assert drawn[6] == pytest.approx(float(first + second) / 2, rel=1e-6)


def micro_keys(parts):
    return jax.random.split(jax.random.fold_in(jax.random.key(0), 0), parts)


def test_the_running_mean_is_its_formula():
    step, state = ready()
    mean = host(state.params)
    for number in range(4):
        state, _ = step(state, frozen_nets(), BATCH)
        decay = float(ema_decay(CONFIG, jnp.array(number)))
        mean = jax.tree.map(lambda m, p, d=decay: d * m + (1 - d) * np.array(p), mean, state.params)
        for a, b in zip(jax.tree.leaves(state.ema), jax.tree.leaves(mean), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert ready(OptimizerConfig(ema_decay=None))[1].ema is None


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_changes_nothing_from_there_on(where, accumulation):
    config = OptimizerConfig(**{**vars(CONFIG), "accumulation": accumulation})
    step, state = ready(config, Rooted())
    state, metrics = step(state, frozen_nets(), BATCH)
    assert metrics["ok"]
    good = host(state)
    landmarks, dropped = BATCH.landmarks.copy(), BATCH.id_dropped.copy()
    if where == "loss":
        landmarks[3, 0, 0] = np.nan
    else:
        dropped[3] = True
    bad = changed(BATCH, landmarks=landmarks, id_dropped=dropped)
    state, metrics = step(state, frozen_nets(), bad)
    assert bool(jnp.isfinite(metrics["loss"])) == (where == "gradient")
    assert not jnp.isfinite(metrics["gradient_norm"])
    for batch in (None, BATCH):  # and a good batch does not mend it
        if batch is not None:
            state, metrics = step(state, frozen_nets(), batch)
        assert not metrics["ok"]
        assert not state.ok
        now = host(state)
        for name in ("step", "key", "params", "stats", "optimizer", "ema"):
            assert_same(getattr(now, name), getattr(good, name))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_statistics_of_norms_travel(accumulation):
    config = OptimizerConfig(
        learning_rate=1e-9, weight_decay=0.0, ema_decay=None, accumulation=accumulation
    )
    step, state = ready(config, norm=True)
    frozen = frozen_nets()
    inputs = frozen["encoder"](jnp.asarray(BATCH.face_id))
    linear = state.params["net"]["linear"]
    seen = np.array(inputs @ linear["kernel"][...] + linear["bias"][...][None])
    mean = np.zeros(10)
    for _ in range(2):
        state, _ = step(state, frozen, BATCH)
        for part in range(accumulation):  # one after another, each its every n-th sample
            mean = 0.9 * mean + 0.1 * seen[part::accumulation].mean(0)
        np.testing.assert_allclose(state.stats["net"]["norm"]["mean"][...], mean, rtol=1e-3)


def test_the_old_state_gives_its_memory_to_the_new():
    step, state = ready()
    new, _ = step(state, frozen_nets(), BATCH)
    given = [x.is_deleted() for x in jax.tree.leaves((state.params, state.optimizer, state.ema))]
    assert all(given)
    assert not any(x.is_deleted() for x in jax.tree.leaves(new))


def test_parts_hold_every_nth_sample():
    """So a batch that lies on devices in blocks is parted without moving."""

    class Telling(Regression):
        def loss(self, trained, frozen, batch, key, schedule):
            loss, terms = super().loss(trained, frozen, batch, key, schedule)
            return loss, {**terms, "first": batch.index[0], "sum": batch.index.sum()}

    step, state = ready(OptimizerConfig(accumulation=4), Telling())
    _, metrics = step(state, frozen_nets(), BATCH)
    assert metrics["first"] == np.mean([0, 1, 2, 3])  # the means over four parts
    assert metrics["sum"] == np.mean([0 + 4, 1 + 5, 2 + 6, 3 + 7])

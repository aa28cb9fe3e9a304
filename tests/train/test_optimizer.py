"""Updates against torch and the schedules' formulas; what each optimizer keeps, in bytes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from fmv2.errors import UserError
from train.optimizer import OptimizerConfig, ema_decay, learning_rate, make_optimizer

STEPS = 20


def normal(*shape):
    return np.random.standard_normal(shape).astype(np.float32)


def weights():
    return {
        "kernel": normal(6, 4),
        "conv": normal(3, 3, 2, 5),
        "bias": normal(4),
        "scale": normal(1),
    }


def run(config, params, gradients, steps=STEPS):
    """The weights after each gradient."""
    optimizer = make_optimizer(config, steps)

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state, history = jax.jit(optimizer.init)(params), []
    for gradient in gradients:
        params, state = step(params, state, gradient)
        history.append(params)
    return history, state


@pytest.mark.parametrize("decay_all", [False, True])
def test_adamw_equals_torch(decay_all):
    start, gradients = weights(), [weights() for _ in range(STEPS)]
    config = OptimizerConfig(
        learning_rate=1e-2, weight_decay=0.3, decay_all=decay_all, clip_norm=None, eps=1e-3
    )
    ours, _ = run(config, start, gradients)

    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    decays = {True: [], False: []}
    for name, tensor in theirs.items():
        decays[decay_all or name in ("kernel", "conv")].append(tensor)
    adamw = torch.optim.AdamW(
        [
            {"params": decays[True], "weight_decay": 0.3},
            {"params": decays[False], "weight_decay": 0.0},
        ],
        lr=1e-2,
        eps=1e-3,
    )
    for params, gradient in zip(ours, gradients, strict=True):
        for name, tensor in theirs.items():
            tensor.grad = torch.tensor(gradient[name])
        adamw.step()
        for name, tensor in theirs.items():
            np.testing.assert_allclose(params[name], tensor.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_one_norm_over_all_weights_is_clipped():
    """Adafactor's and Adam's updates hide the gradient's length: Adam's first moment shows it."""
    long = {"a": jnp.array([[3.0, 0.0]]), "b": jnp.array([4.0])}
    for clip, factor in ((1.0, 0.2), (10.0, 1.0), (None, 1.0)):
        _, state = run(OptimizerConfig(clip_norm=clip), long, [long])
        moment = optax.tree.get(state, "mu")
        for name, gradient in long.items():
            np.testing.assert_allclose(moment[name], 0.1 * factor * gradient, rtol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_the_learning_rate_is_its_formula(schedule, warmup):
    config = OptimizerConfig(learning_rate=0.5, schedule=schedule, warmup_steps=warmup)
    rate, steps = learning_rate(config, 110), np.arange(111)
    after = np.clip((steps - warmup) / (110 - warmup), 0, 1)
    falling = {
        "constant": 1,
        "cosine": 0.01 + 0.99 * (1 + np.cos(math.pi * after)) / 2,
        "wsd": 1 - 0.99 * np.clip((steps - 88) / 22, 0, 1),
    }[schedule]
    rising = np.minimum(steps / warmup, 1) if warmup else 1
    expected = 0.5 * falling * rising
    np.testing.assert_allclose([rate(n) for n in steps], expected * np.ones(111), rtol=1e-5)


def test_the_rate_is_that_of_the_step():
    """Without decay a sign of 1 in each gradient moves AdamW by the rate itself."""
    config = OptimizerConfig(
        learning_rate=0.5, warmup_steps=2, weight_decay=0.0, clip_norm=None, eps=1e-20
    )
    history, _ = run(config, {"x": jnp.zeros((1, 1))}, [{"x": jnp.ones((1, 1))}] * 4)
    moved = np.diff([0.0, *(float(params["x"][0, 0]) for params in history)])
    np.testing.assert_allclose(moved, [0, -0.25, -0.5, -0.5], rtol=1e-4, atol=1e-9)


def test_what_each_optimizer_keeps():
    """In bytes: AdamW twice the weights, Lion half of them, Adafactor a row and a column, Muon the
    kernel once and the bias twice."""
    params = {"kernel": jnp.zeros((256, 512)), "bias": jnp.zeros(512)}

    def kept(name):
        state = jax.eval_shape(make_optimizer(OptimizerConfig(name=name), STEPS).init, params)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.shape != ())

    count = 256 * 512 + 512
    assert kept("adamw") == 2 * 4 * count
    assert kept("lion") == 2 * count
    # Besides, optax keeps a single zero in the place of each factor that a weight does not have,
    # and Muon's coefficients, three an iteration.
    assert kept("adafactor") == 4 * (256 + 512 + 512 + 3)
    assert kept("muon") == 4 * (256 * 512 + 2 * 512 + 3 * 3)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_each_optimizer_finds_the_bottom_of_a_bowl(name):
    goal = weights() | {"kernel": normal(128, 130)}
    params = jax.tree.map(np.zeros_like, goal)
    rate = {"adamw": 0.1, "adafactor": 0.1, "lion": 0.05, "muon": 0.1}[name]
    config = OptimizerConfig(name=name, learning_rate=rate, weight_decay=0.0, schedule="cosine")
    optimizer = make_optimizer(config, 200)

    def step(carry, _):
        params, state = carry
        gradient = jax.tree.map(lambda x, y: x - y, params, goal)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    (params, _), _ = jax.jit(lambda x: jax.lax.scan(step, x, length=200))(start)
    for name, value in goal.items():
        assert np.abs(params[name] - value).max() < 0.1, name


def test_muon_steps_along_orthogonal_matrices_as_far_as_adamw():
    """A gradient whose directions differ fiftyfold moves a kernel along all of them alike, by
    0.2 of the rate per weight; what is no kernel moves as with NAdamW."""
    left, right = (np.linalg.qr(normal(n, n))[0] for n in (18, 5))
    steep = left[:, :5] * np.geomspace(2e-2, 1, 5) @ right
    gradient = {
        "conv": steep.reshape(3, 3, 2, 5).astype(np.float32),
        "embedding": normal(7, 4),
        "bias": normal(4),
    }
    start = jax.tree.map(np.zeros_like, gradient)

    config = OptimizerConfig(name="muon", learning_rate=0.5, clip_norm=None)
    (moved,), _ = run(config, start, [gradient])
    nadamw = optax.nadamw(0.5, weight_decay=0.0)
    updates, _ = nadamw.update(gradient, nadamw.init(start), start)
    for name in ("embedding", "bias"):
        np.testing.assert_allclose(moved[name], updates[name], rtol=1e-5)
    lengths = np.linalg.svd(np.asarray(moved["conv"]).reshape(18, 5), compute_uv=False)
    assert lengths.max() < 3 * lengths.min()
    np.testing.assert_allclose(np.sqrt(np.square(moved["conv"]).mean()), 0.1, rtol=0.25)


def test_muon_steps_each_kernel_as_if_it_were_alone():
    """Whatever else has its shape, and in any order."""
    shapes = {"a": (6, 4), "b": (4,), "c": (3, 3, 2, 4), "d": (6, 4), "e": (4,), "f": (6, 4)}
    start = {name: normal(*shape) for name, shape in shapes.items()}
    gradients = [{name: normal(*shape) for name, shape in shapes.items()} for _ in range(STEPS)]
    config = OptimizerConfig(name="muon", learning_rate=0.1, clip_norm=None)
    together, _ = run(config, start, gradients)
    for name in shapes:
        alone, _ = run(config, {name: start[name]}, [{name: x[name]} for x in gradients])
        np.testing.assert_allclose(together[-1][name], alone[-1][name], rtol=1e-4, atol=1e-5)


def test_vectors_have_a_rate_of_their_own():
    start, gradients = weights(), [weights() for _ in range(STEPS)]

    def moved(rate):
        config = OptimizerConfig(name="muon", vector_rate=rate, weight_decay=0.0)
        history, _ = run(config, start, gradients)
        return {name: history[-1][name] - start[name] for name in start}

    as_far, less_far = moved(1.0), moved(0.1)
    for name in ("kernel", "conv"):
        np.testing.assert_array_equal(less_far[name], as_far[name])
    for name in ("bias", "scale"):
        np.testing.assert_allclose(less_far[name], 0.1 * as_far[name], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("decay_all", [False, True])
def test_muon_decays_kernels_and_the_rest_where_it_is_asked(decay_all):
    """No gradient, no step: what moves a weight is its decay."""
    ones = {"conv": jnp.ones((3, 3, 2, 5)), "embedding": jnp.ones((7, 4)), "bias": jnp.ones(4)}
    config = OptimizerConfig(
        name="muon", learning_rate=0.5, weight_decay=0.1, decay_all=decay_all, clip_norm=None
    )
    (moved,), _ = run(config, ones, [jax.tree.map(jnp.zeros_like, ones)])
    decaying = ones if decay_all else ("conv",)
    for name, value in moved.items():
        kept = 0.95 if name in decaying else 1.0
        np.testing.assert_allclose(value, kept, rtol=1e-6, err_msg=name)


def test_lions_moment_in_half_precision_keeps_up():
    """A thousand equal gradients: in float32 the moment comes to 1, or to 0.63 at AdamW's b2."""
    optimizers = {
        b2: make_optimizer(OptimizerConfig(name="lion", b2=b2, clip_norm=None), STEPS)
        for b2 in (None, 0.999)
    }
    one = {"x": jnp.ones((1, 1))}

    def moment(optimizer):
        def step(state, _):
            return optimizer.update(one, state, one)[1], None

        state, _ = jax.lax.scan(step, optimizer.init(one), length=1000)
        return optax.tree.get(state, "mu")["x"].astype(jnp.float32)

    ours, at_adamws = (
        float(jax.jit(moment, static_argnums=0)(x)[0, 0]) for x in optimizers.values()
    )
    assert ours > 0.6
    assert at_adamws < 0.55


def test_the_running_means_decay():
    """min(d, (1 + n) / (10 + n)), n steps made before this one."""
    config = OptimizerConfig(ema_decay=0.9)
    decays = [float(ema_decay(config, jnp.array(n))) for n in (0, 1, 10, 79, 80, 81, 10_000)]
    np.testing.assert_allclose(decays, [0.1, 2 / 11, 0.55, 80 / 89, 0.9, 0.9, 0.9], rtol=1e-6)


def test_settings_that_cannot_work_are_refused_at_once():
    with pytest.raises(UserError) as error:
        OptimizerConfig(
            learning_rate=0.0,
            vector_rate=0.0,
            warmup_steps=-1,
            weight_decay=-1.0,
            b1=1.0,
            b2=-0.1,
            eps=0.0,
            clip_norm=0.0,
            accumulation=0,
            ema_decay=1.0,
        )
    assert str(error.value) == (
        "optimizer: learning_rate=0.0: expected more than 0; "
        "vector_rate=0.0: expected more than 0; "
        "warmup_steps=-1: expected 0 or more; "
        "weight_decay=-1.0: expected 0 or more; "
        "b1=1.0: expected at least 0 and less than 1; "
        "b2=-0.1: expected at least 0 and less than 1; "
        "eps=0.0: expected more than 0; "
        "clip_norm=0.0: expected more than 0; "
        "accumulation=0: expected 1 or more; "
        "ema_decay=1.0: expected at least 0 and less than 1"
    )
    with pytest.raises(UserError, match="learning_rate=nan"):
        OptimizerConfig(learning_rate=math.nan)

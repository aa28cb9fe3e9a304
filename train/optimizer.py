"""Gradients to updates: optax, put together from a typed config."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from fmv2.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer, its learning rate over time, and what is averaged."""

    name: Literal["adamw", "adafactor", "lion", "muon"] = "adamw"
    """AdamW keeps two moments in float32; Adafactor the rows' and columns' means of one; Lion one
    in bfloat16, and wants a learning rate about a fifth of AdamW's. Muon keeps one in float32 of
    kernels, which it steps along made orthogonal, as far as AdamW would; the rest is NAdamW's."""
    learning_rate: float = 1e-4
    """At its peak."""
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    """Constant; or half a cosine down to a hundredth of the peak at the end of the run; or constant
    for four fifths of the run and then straight down to the same, so that a run that is to end
    sooner or later than was thought is only given other steps (warmup, stable, decay: Hu et al.
    2024)."""
    vector_rate: float = 1.0
    """What Muon leaves to NAdamW (embeddings, biases, scales of norms) learns at so many times the
    learning rate; other optimizers have one rate for all."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    weight_decay: float = 1e-2
    """Per step, times the learning rate."""
    decay_all: bool = False
    """Let norms and biases decay too; kernels always do, and embeddings but with Muon."""
    b1: float = 0.9
    """Of AdamW's first moment, or of what Lion steps along. Adafactor has no such thing, and Muon's
    own is 0.95."""
    b2: float | None = None
    """Of AdamW's and NAdamW's second moment, or of Lion's only one. None: 0.999, and for Lion
    0.99."""
    eps: float = 1e-8
    """Beside the root of AdamW's second moment."""
    clip_norm: float | None = 1.0
    """Longest gradient, over all weights together; None clips nothing."""
    accumulation: int = 1
    """Micro-batches that one step's batch is worked off in."""
    ema_decay: float | None = 0.9999
    """Of the weights' running mean; less in the first steps. None keeps no mean."""

    def __post_init__(self):
        positive, fraction = "more than 0", "at least 0 and less than 1"
        limits = {
            "learning_rate": (self.learning_rate > 0, positive),
            "vector_rate": (self.vector_rate > 0, positive),
            "warmup_steps": (self.warmup_steps >= 0, "0 or more"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "b1": (0 <= self.b1 < 1, fraction),
            "b2": (self.b2 is None or 0 <= self.b2 < 1, fraction),
            "eps": (self.eps > 0, positive),
            "clip_norm": (self.clip_norm is None or self.clip_norm > 0, positive),
            "accumulation": (self.accumulation >= 1, "1 or more"),
            "ema_decay": (self.ema_decay is None or 0 <= self.ema_decay < 1, fraction),
        }
        if faults := [
            f"{name}={getattr(self, name)}: expected {wanted}"
            for name, (holds, wanted) in limits.items()
            if not holds
        ]:
            raise UserError("optimizer: " + "; ".join(faults))


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate at each step of a run of `steps`."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), alpha=0.01)
    elif config.schedule == "wsd":
        tail = max(steps // 5, 1)
        main = optax.linear_schedule(peak, 0.01 * peak, tail, max(steps - warmup - tail, 0))
    else:
        main = optax.constant_schedule(peak)
    if warmup == 0:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip, then the optimizer with decoupled weight decay."""
    rate = learning_rate(config, steps)
    mask = None if config.decay_all else _decays
    decay: Any = {"weight_decay": config.weight_decay, "mask": mask}
    b1, b2 = config.b1, config.b2
    match config.name:
        case "adamw":
            main = optax.adamw(rate, b1, 0.999 if b2 is None else b2, config.eps, **decay)
        case "lion":
            # In bfloat16 a thousandth of a gradient is soon lost beside the moment.
            b2 = 0.99 if b2 is None else b2
            main = optax.lion(rate, b1, b2, mu_dtype=jnp.bfloat16, **decay)
        case "muon":
            each = muon(
                rate,
                adam_learning_rate=lambda step: config.vector_rate * rate(step),
                adam_b1=b1,
                adam_b2=0.999 if b2 is None else b2,
                eps=config.eps,
                weight_decay=config.weight_decay,
                adam_weight_decay=config.weight_decay if config.decay_all else 0.0,
                muon_weight_dimension_numbers=_matrices,
                ns_coeffs=_NEWTON_SCHULZ,
                consistent_rms=0.2,
            )
            main = _in_stacks(each)
        case "adafactor":
            main = optax.chain(
                optax.scale_by_factored_rms(),
                optax.clip_by_block_rms(1.0),
                optax.add_decayed_weights(**decay),
                optax.scale_by_learning_rate(rate),
            )
    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
    )
    return optax.chain(clip, main)


def ema_decay(config: OptimizerConfig, step: jax.Array) -> jax.Array:
    """The running mean's decay at a step: small at first, so that it forgets where it began."""
    assert config.ema_decay is not None
    return jnp.minimum(config.ema_decay, (1 + step) / (10 + step))


_NEWTON_SCHULZ = (
    (8.0934, -23.6204, 17.4462),
    (3.6366, -2.7219, 0.5365),
    (2.3686, -1.7597, 0.4028),
)
"""a, b, c of each iteration's a X + b X XᵀX + c X (XᵀX)². Singular values from 0.01 of the matrix's
length on come to 0.65 to 1.13, by three iterations; Muon's own, which are all alike, bring them to
0.68 to 1.13 by five.

Each is the minimax polynomial on the interval that the one before leads to (Amsel et al. 2025, The
Polar Express); the last is made smaller by the factor 0.89, for a step as long as Muon's.
"""
_KERNELS = "kernels"
_Stacks = dict[str, jax.Array]


def _in_stacks(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same step, made for all weights of one shape at once.

    A net of hundreds of kernels has some thirty shapes of them, and XLA would compile Muon's loop
    for each kernel by itself.
    """

    def init(params):
        return inner.init(_stack(params))

    def update(updates, state, params=None):
        given = None if params is None else _stack(params)
        stacks, state = inner.update(_stack(updates), state, given)
        return _unstack(stacks, updates), state

    return optax.GradientTransformation(init, update)


def _stack(tree: Any) -> _Stacks:
    groups: dict[str, list[jax.Array]] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        groups.setdefault(_group(path, x), []).append(x)
    return {name: jnp.stack(group) for name, group in groups.items()}


def _unstack(stacks: Any, like: Any) -> Any:
    each = {name: iter(stack) for name, stack in stacks.items()}
    return jax.tree_util.tree_map_with_path(lambda path, x: next(each[_group(path, x)]), like)


def _group(path: Any, x: jax.Array) -> str:
    kernel = x.ndim > 1 and "embedding" not in jax.tree_util.keystr(path)
    return f"{_KERNELS if kernel else 'others'} {x.dtype} {x.shape}"


def _matrices(stacks: Any) -> Any:
    """How Muon sees a kernel as a matrix: its last axis against all others. None is NAdamW's.

    Embeddings are, each row being a thing of its own; optax has no decay for them alone.
    """

    def matrix(path, stack):
        if _KERNELS not in jax.tree_util.keystr(path):
            return None
        last = stack.ndim - 1
        return MuonDimensionNumbers(tuple(range(1, last)), last)

    return jax.tree_util.tree_map_with_path(matrix, stacks)


def _decays(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, params)

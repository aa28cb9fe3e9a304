"""Batches for the tests of what eats them, random but of every kind of sample; and random nets."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.components import COMPONENTS
from data.geometry import shrink_masks
from data.schema import MASKS, TOKENS, Batch
from fmv2.models.abstract import abstract


def face_batch(
    count: int = 4, *, size: int = 128, face: int = 32, id_dim: int = 512, seed: int = 0
) -> tuple[Batch, np.ndarray]:
    """A batch whose first sample has all phrases, the second no text but its masks, the third no
    face, the fourth no phrase; and the masks at full size, (b, k, size, size) of 0 and 1.

    Masks are shrunk as published, to the grid at a sixteenth of the size.
    """
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, MASKS, size, size), np.uint8)
    for mask in masks.reshape(-1, size, size):
        top, left, height, width = rng.integers(1, size // 2, 4)
        mask[top : top + height, left : left + width] = 1
    masks &= rng.random(masks.shape) < 0.8  # cells of every cover
    planes = np.packbits(masks, axis=1, bitorder="little")[:, 0]
    grid = size // 16
    tokens = np.zeros((count, MASKS, TOKENS), bool)
    for row in tokens.reshape(-1, TOKENS):
        start, length = rng.integers(1, 70), rng.integers(1, 6)
        row[start : start + length] = True
    valid = rng.random((count, MASKS)) < 0.5
    valid[0], valid[3] = True, False
    ids = rng.integers(3, 99, (count, TOKENS)).astype(np.int32)
    ids[:, 30:] = 99  # the end and its padding
    first = np.arange(count)
    text_dropped = first == 1
    ids[text_dropped, 1:] = 99
    unit = rng.normal(size=(count, id_dim))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)

    def pixels(side):
        return rng.integers(0, 256, (count, side, side, 3), np.uint8)

    batch = Batch(
        index=first.astype(np.int32),
        image=pixels(size),
        face=pixels(face),
        shading=pixels(size),
        input_ids=ids,
        caption_kind=np.zeros(count, np.int32),
        token_mask=tokens,
        mask_valid=valid,
        masks={grid: np.stack([shrink_masks(p, MASKS, (grid,), "bilinear")[grid] for p in planes])},
        face_id=unit.astype(np.float32),
        landmarks=rng.uniform(0, size, (count, 5, 2)).astype(np.float32),
        text_dropped=text_dropped,
        face_dropped=first == 2,
        id_dropped=np.zeros(count, bool),
    )
    return batch, masks


def changed(batch: Batch, **fields: Any) -> Batch:
    """The batch with other values in some fields."""
    return dataclasses.replace(batch, **fields)


def random_net(name: str, config: Any, seed: int, **options: Any) -> Any:
    """A component with nothing zero in it: LoRA, the control net's last layers, norms and biases
    too; `options` as for its class.
    """
    rng = np.random.default_rng(seed)

    def draw(path, x):
        if "var" in jax.tree_util.keystr(path):
            values = rng.uniform(0.5, 2, x.shape)
        elif len(x.shape) > 1:
            values = rng.normal(0, np.prod(x.shape[:-1]) ** -0.5, x.shape)
        else:
            values = rng.normal(0.5, 0.2, x.shape)
        return jnp.asarray(values, x.dtype)

    graph, state = nnx.split(abstract(COMPONENTS[name].net, config, **options))
    return nnx.merge(graph, jax.tree.map_with_path(draw, state))

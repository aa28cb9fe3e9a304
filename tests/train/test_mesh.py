"""The same run on one device, and on eight laid out in every way, sees and learns the same."""

import dataclasses

import jax
import numpy as np
import pytest
from rich.console import Console

from fmv2.parallel import MeshConfig
from tests.train.small import IMAGE_SIZE, write_base, write_records
from train.config import TrainConfig
from train.objectives.face_makeup import FaceMakeUp
from train.optimizer import OptimizerConfig
from train.run import prepare

STEPS = 3
LAYOUTS = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(fsdp=8),
    "all": MeshConfig(data=2, fsdp=2, tensor=2),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mesh")
    base = write_base(folder / "base")
    return TrainConfig(
        data=write_records(folder / "records", base),
        out=folder / "out",
        base=base,
        steps=STEPS,
        objective=FaceMakeUp(id_every=2, id_bound=500, identity="face_encoder", rank=8),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        batch_size=16,
        size=IMAGE_SIZE,
        compute="float32",
    )


def losses(config):
    """Of a few steps, with the records seen and the run at its end."""
    run, state = prepare(config, Console(quiet=True))
    found = []
    with run.loader() as loader:
        for batch, _ in zip(loader, range(STEPS), strict=False):
            state, metrics = run.step(state, run.frozen, batch)
            found.append(
                {"index": np.asarray(batch.index)}
                | {name: float(value) for name, value in metrics.items()}
            )
    return found, run, state


@pytest.fixture(scope="module")
def alone(config):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
        return losses(config)[0]


@pytest.mark.parametrize(
    "layout",
    # Each takes a minute to compile; the last one has every kind of exchange.
    [
        pytest.param("data", marks=pytest.mark.slow),
        pytest.param("fsdp", marks=pytest.mark.slow),
        "all",
    ],
)
def test_every_layout_sees_and_learns_the_same(config, alone, layout):
    mesh = LAYOUTS[layout]
    found, run, state = losses(dataclasses.replace(config, mesh=mesh))
    for ours, single in zip(found, alone, strict=True):
        assert np.array_equal(ours.pop("index"), single["index"])
        for name, value in ours.items():
            assert value == pytest.approx(single[name], rel=1e-5), name
    assert alone[0]["loss"] != alone[-1]["loss"]

    # What is split is a part on every device, in the frozen nets, the state and the running mean.
    kernel = ("layers", 1, "to_q_lora", "up", "kernel")
    for tree in (state.params, state.optimizer[1][0].mu, state.ema):
        array = at(tree, ("adapter", *kernel))
        # (rank, out): fsdp takes the larger one where tensor leaves it.
        fsdp = 0 if mesh.tensor > 1 else 1
        assert parts(array) == parts_of(array, tensor=1, fsdp=fsdp, mesh=mesh)
    unet = run.frozen["unet"]
    down, up = unet.down_blocks[1], unet.up_blocks[0]
    attention = down.attentions[0].transformer_blocks[0].attn2
    for array, dimensions in (
        (attention.to_k.kernel, {"tensor": 1, "fsdp": 0}),
        (attention.to_out.kernel, {"tensor": 0, "fsdp": 1}),
        (up.resnets[0].conv2.kernel, {"tensor": 2, "fsdp": 3}),
    ):
        assert parts(array[...]) == parts_of(array[...], mesh=mesh, **dimensions)


def at(tree, path):
    for part in path:
        tree = tree[part]
    return tree[...]


def parts(array):
    """Shapes of the pieces that the devices hold."""
    return {shard.data.shape for shard in array.addressable_shards}


def parts_of(array, *, tensor, fsdp, mesh):
    shape = list(array.shape)
    shape[tensor] //= mesh.tensor
    shape[fsdp] //= mesh.fsdp
    return {tuple(shape)}

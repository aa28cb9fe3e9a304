"""DECA's coarse encoder against its torch peer on random weights, whole and block by block."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from convert.components import plan
from convert.engine import dump, load, torch_shapes
from convert.kinds import Part
from convert.peers import DecaEncoder
from convert.tables.coefficient_encoder import TABLE
from data.schema import COEFFICIENTS
from fmv2.errors import UserError
from fmv2.models.abstract import abstract
from fmv2.models.coefficient_encoder import CoefficientEncoder, CoefficientEncoderConfig
from tests.parity import randomize_, refs, relative_error, to_nchw, to_nhwc

TINY = CoefficientEncoderConfig.tiny()
LARGER = dataclasses.replace(TINY, layers=(2, 1, 1, 3), image_size=72)


@functools.cache
def peers(config, dtype=torch.float32):
    """The torch net of a configuration and ours with its weights."""
    peer = randomize_(DecaEncoder(config)).to(dtype)
    tensors = refs(peer.state_dict())
    return peer, load(abstract(CoefficientEncoder, config), tensors, TABLE, name="deca")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(net, *inputs):
    return nnx.jit(lambda net, *inputs: net(*inputs))(net, *inputs)


@pytest.mark.parametrize("config", [TINY, LARGER], ids=["tiny", "larger"])
def test_coefficients_equal_torch(config):
    peer, net = peers(config)
    images = np.random.default_rng(0).random((3, config.image_size, config.image_size, 3), "f")
    with torch.no_grad():
        expected = peer(to_nchw(images)).split([100, 50, 50, 6, 3, 27], dim=1)
    actual = run(net, images)
    for name, found, wanted in zip(actual._fields, actual, expected, strict=True):
        assert relative_error(found.reshape(3, -1), wanted) < 1e-4, name


def test_fields_are_those_of_records():
    _, net = peers(TINY)
    found = run(net, normal(2, 64, 64, 3))._asdict()
    assert found.pop("texture").shape == (2, 50)
    assert {name: x.shape[1:] for name, x in found.items()} == {
        name: shape for name, (shape, _) in COEFFICIENTS.items()
    }


@pytest.mark.parametrize(
    ("path", "channels"),
    [("conv1", 3), ("bn1", 4), ("layer1.0", 4), ("layer2.0", 16), ("layer2.1", 24)],
)
def test_each_block_equals_torch(path, channels):
    peer, net = peers(TINY)
    block = functools.reduce(
        lambda node, name: node[int(name)] if name.isdigit() else getattr(node, name),
        path.split("."),
        net.encoder,
    )
    x = normal(2, 7, 10, channels)
    with torch.no_grad():
        expected = peer.encoder.get_submodule(path)(to_nchw(x))
    assert relative_error(run(block, x), to_nhwc(expected)) < 1e-5


def test_training_equals_torch():
    """In `train()` norms use the batch and keep its statistics, as torch's do but for n/(n - 1)."""
    peer = randomize_(DecaEncoder(TINY)).train()
    net = load(abstract(CoefficientEncoder, TINY), refs(peer.state_dict()), TABLE, name="deca")
    net.train()
    images = np.random.default_rng(0).random((4, 64, 64, 3), "f")

    @jax.jit
    def step(graph, params, stats):
        net = nnx.merge(graph, params, stats)
        found = net(images)
        return jnp.concatenate([x.reshape(4, -1) for x in found], 1), nnx.state(net, nnx.BatchStat)

    found, stats = step(*nnx.split(net, nnx.Param, ...))
    with torch.no_grad():
        expected = peer(to_nchw(images))
    assert relative_error(found, expected) < 1e-4
    bn = peer.encoder.bn1
    assert relative_error(stats["encoder"]["bn1"]["mean"][...], bn.running_mean) < 1e-4
    count = 4 * 32 * 32  # torch keeps the unbiased variance
    before = randomize_(DecaEncoder(TINY)).encoder.bn1.running_var
    biased = 0.9 * before + (bn.running_var - 0.9 * before) * (count - 1) / count
    assert relative_error(stats["encoder"]["bn1"]["var"][...], biased) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_round_trip_is_bit_exact(dtype):
    peer, net = peers(LARGER, dtype)
    expected = {
        key: ref
        for key, ref in refs(peer.state_dict()).items()
        if not key.endswith("num_batches_tracked")
    }
    actual = dict(dump(net, TABLE))
    assert actual.keys() == expected.keys()
    for key, array in actual.items():
        assert array.dtype == expected[key].dtype, key
        assert array.tobytes() == expected[key].read().tobytes(), key


def test_full_size():
    config = CoefficientEncoderConfig.deca()
    net = abstract(CoefficientEncoder, config)
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(nnx.state(net, nnx.Param))) == 25_848_108
    with torch.device("meta"):
        peer = DecaEncoder(config)
    state = {k: v for k, v in peer.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert torch_shapes(net, TABLE) == {key: tuple(tensor.shape) for key, tensor in state.items()}
    assert tuple(peer.state_dict()["encoder.layer4.0.conv2.weight"].shape) == (512, 512, 3, 3)


@pytest.mark.parametrize("config", [TINY, LARGER], ids=["tiny", "larger"])
def test_shape_is_told_from_the_file(config):
    tensors = refs(DecaEncoder(config).state_dict())
    part = Part(tensors, config.to_config())
    assert plan({"coefficient_encoder": part})["coefficient_encoder"].net.config == config
    # DECA's own file comes without a config.
    found = plan({"coefficient_encoder": Part(tensors)})["coefficient_encoder"].net.config
    assert found == dataclasses.replace(config, image_size=224)
    del tensors["encoder.layer3.0.conv1.weight"]
    with pytest.raises(UserError, match=r"lacks layers\.0.weight or one of layer1 to layer4"):
        plan({"coefficient_encoder": Part(tensors)})


def test_wrong_sizes_are_refused():
    _, net = peers(TINY)
    with pytest.raises(ValueError, match=r"crops must be \(b, 64, 64, 3\), got \(1, 64, 48, 3\)"):
        net(normal(1, 64, 48, 3))
    with pytest.raises(UserError) as error:
        CoefficientEncoderConfig(layers=(1, 0, 1, 1), widths=(4, 4, 4), hidden_size=0, image_size=8)
    for text in ("layers must be 4", "widths must be 4", "hidden_size must", "at least 32, got 8"):
        assert text in str(error.value)

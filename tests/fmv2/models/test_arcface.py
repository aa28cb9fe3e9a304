"""ArcFace's IResNet against its torch peer on random weights, whole and block by block."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from convert.engine import ConversionError, dump, load, torch_shapes
from convert.peers import IResNet
from convert.tables import arcface
from fmv2.errors import UserError
from fmv2.models.abstract import abstract
from fmv2.models.arcface import ArcFace, ArcFaceConfig, normalize
from tests.parity import randomize_, refs, relative_error, to_nchw, to_nhwc

TINY = ArcFaceConfig.tiny()
LARGER = dataclasses.replace(TINY, layers=(2, 1, 1, 3), image_size=48)


@functools.cache
def peers(config, dtype=torch.float32):
    """The torch net of a configuration and ours with its weights."""
    peer = randomize_(IResNet(config)).to(dtype)
    tensors = refs(peer.state_dict())
    return peer, load(abstract(ArcFace, config), tensors, arcface.table(config), name="arcface")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(net, *inputs):
    return nnx.jit(lambda net, *inputs: net(*inputs))(net, *inputs)


@pytest.mark.parametrize("config", [TINY, LARGER], ids=["tiny", "larger"])
def test_embeddings_equal_torch(config):
    peer, net = peers(config)
    images = normal(3, config.image_size, config.image_size, 3)
    with torch.no_grad():
        expected = peer(to_nchw(images))
    actual = run(net, images)
    assert relative_error(actual, expected) < 1e-4
    unit = torch.nn.functional.normalize(expected)
    assert relative_error(normalize(actual), unit) < 1e-4


@pytest.mark.parametrize(
    ("path", "channels"),
    [("conv1", 3), ("bn1", 4), ("prelu", 4), ("layer1.0", 4), ("layer2.0", 4), ("layer2.1", 6)],
)
def test_each_block_equals_torch(path, channels):
    peer, net = peers(TINY)
    block = functools.reduce(
        lambda node, name: node[int(name)] if name.isdigit() else getattr(node, name),
        path.split("."),
        net,
    )
    x = normal(2, 7, 10, channels)
    with torch.no_grad():
        expected = peer.get_submodule(path)(to_nchw(x))
    assert relative_error(run(block, x), to_nhwc(expected)) < 1e-5


def test_image_gradient_equals_autograd():
    """The identity loss is differentiated through the normalised embedding."""
    peer, net = peers(TINY)
    images, weight = normal(2, 32, 32, 3), normal(2, 12, seed=1)
    x = to_nchw(images).requires_grad_()
    unit = torch.nn.functional.normalize(peer(x))
    (expected,) = torch.autograd.grad((unit * torch.from_numpy(weight)).sum(), x)
    gradient = jax.grad(lambda x, net: jnp.vdot(normalize(net(x)), weight))
    assert relative_error(nnx.jit(gradient)(images, net), to_nhwc(expected)) < 1e-4


def test_normalize_survives_zero():
    value, gradient = jax.value_and_grad(lambda x: normalize(x).sum())(jnp.zeros((1, 4)))
    assert value == 0
    assert np.isfinite(gradient).all()


def test_half_precision_keeps_statistics_in_float32():
    """A mean that bfloat16 cannot hold is still told from its neighbour that it can."""
    config = dataclasses.replace(TINY, image_size=16)
    peer, _ = peers(config)
    tensors = refs(peer.state_dict())
    table = arcface.table(config)
    net = load(abstract(ArcFace, config, dtype=jnp.bfloat16), tensors, table, name="arcface")
    assert net.bn2.mean.dtype == jnp.float32
    net.features.mean[...] = jnp.full(12, 1001.0, jnp.float32)
    net.features.var[...] = jnp.ones(12, jnp.float32)
    y = run(net.features, jnp.full((1, 12), 1000.0, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    expected = net.features.bias[...] - net.features.scale[...]
    assert relative_error(y[0], expected) < 0.01
    images = normal(2, 16, 16, 3)
    assert run(net, images).dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [TINY, LARGER], ids=["tiny", "larger"])
def test_round_trip_is_bit_exact(config, dtype):
    peer, net = peers(config, dtype)
    expected = {
        key: ref
        for key, ref in refs(peer.state_dict()).items()
        if not key.endswith("num_batches_tracked")
    }
    actual = dict(dump(net, arcface.table(config)))
    assert actual.keys() == expected.keys()
    for key, array in actual.items():
        assert array.dtype == expected[key].dtype, key
        assert array.tobytes() == expected[key].read().tobytes(), key
    state = {key: torch.zeros_like(t) for key, t in peer.state_dict().items() if key in actual}
    IResNet(config).load_state_dict(state)  # torch does without the ignored counters


@pytest.mark.parametrize(
    ("config", "count"),
    [(ArcFaceConfig.r50(), 43_590_848), (ArcFaceConfig.r100(), 65_156_160)],
    ids=["r50", "r100"],
)
def test_full_size_has_the_published_number_of_parameters(config, count):
    net = abstract(ArcFace, config)
    sizes = [np.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(net, nnx.Param))]
    assert sum(sizes) == count
    with torch.device("meta"):
        peer = IResNet(config)
    shapes = torch_shapes(net, arcface.table(config))
    expected = {
        key: tuple(tensor.shape)
        for key, tensor in peer.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert shapes == expected
    assert shapes["fc.weight"] == (512, 512 * 7 * 7)


def test_a_file_of_another_depth_is_refused():
    peer, _ = peers(TINY)
    with pytest.raises(
        ConversionError, match=r"unexpected key layer2.1.bn1.weight.*missing key layer4.2"
    ):
        load(
            abstract(ArcFace, LARGER),
            refs(peer.state_dict()),
            arcface.table(LARGER),
            name="arcface",
        )


def test_wrong_sizes_are_refused():
    _, net = peers(TINY)
    with pytest.raises(ValueError, match=r"faces must be \(b, 32, 32, 3\), got \(1, 32, 48, 3\)"):
        net(normal(1, 32, 48, 3))
    with pytest.raises(UserError) as error:
        ArcFaceConfig(layers=(1, 0, 1, 1), widths=(4, 4, 4), image_size=40)
    for text in ("layers must be 4", "widths must be 4", "multiple of 16, got 40"):
        assert text in str(error.value)

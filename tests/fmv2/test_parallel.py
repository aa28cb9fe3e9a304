"""Where arrays lie, what is refused, and that hosts find each other and agree."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import PartitionSpec as P

from fmv2.errors import UserError
from fmv2.models.abstract import abstract
from fmv2.models.id_adapter import IdAdapter, IdAdapterConfig
from fmv2.models.unet import UNet, UNetConfig
from fmv2.parallel import (
    HostsConfig,
    MeshConfig,
    batch_sharding,
    initialize_distributed,
    make_mesh,
    refuse_difference,
    shardings,
    spec,
)


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices())


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("attn1.to_q.kernel", (64, 32), P("fsdp", "tensor")),
        ("attn1.to_out.kernel", (32, 64), P("tensor", "fsdp")),
        ("layers.0.to_q_lora.down.kernel", (64, 4), P("fsdp", None)),
        ("layers.0.to_q_lora.up.kernel", (4, 64), P("fsdp", "tensor")),
        ("layers.0.to_out_lora.down.kernel", (64, 4), P("tensor", "fsdp")),
        ("layers.0.to_k_ip.kernel", (64, 32), P("fsdp", "tensor")),
        ("resnets.0.conv1.kernel", (3, 3, 16, 32), P(None, None, "fsdp", "tensor")),
        ("resnets.0.conv2.kernel", (3, 3, 32, 16), P(None, None, "tensor", "fsdp")),
        ("ff.proj_in.kernel", (16, 128), P("fsdp", "tensor")),
        ("attentions.0.proj_in.kernel", (16, 16), P(None, "fsdp")),  # of a spatial transformer
        ("mlp.fc2.kernel", (64, 16), P("tensor", "fsdp")),
        ("token_embedding.embedding", (99, 16), P(None, "fsdp")),  # 99 does not divide
        ("conv_in.kernel", (3, 3, 3, 5), P(None, None, None, None)),
        ("norm.scale", (64,), P(None)),
        ("count", (), P()),
    ],
)
def test_each_axis_splits_its_dimension(mesh, name, shape, expected):
    assert spec(name, shape, mesh) == expected


def test_axes_of_one_device_split_nothing():
    alone = make_mesh(MeshConfig(), jax.devices()[:1])
    assert spec("attn1.to_q.kernel", (64, 32), alone) == P(None, None)


def test_optimizer_state_lies_where_its_parameter_does(mesh):
    import optax

    net = {"adapter": abstract(IdAdapter, IdAdapterConfig.for_unet(UNetConfig.tiny()))}
    state = jax.eval_shape(optax.adamw(1e-3).init, net)
    placed, moments = shardings(net, mesh), shardings(state, mesh)[0]
    assert jax.tree.leaves(moments.mu) == jax.tree.leaves(moments.nu) == jax.tree.leaves(placed)
    assert moments.count.spec == P()
    used = {axis for leaf in jax.tree.leaves(placed) for axis in leaf.spec}
    assert used == {None, "fsdp", "tensor"}


def test_nearly_all_weights_are_split(mesh):
    net = abstract(UNet, UNetConfig.sd15())
    leaves = zip(jax.tree.leaves(net), jax.tree.leaves(shardings(net, mesh)), strict=True)
    whole = split = 0
    for leaf, placed in leaves:
        split += placed.shard_shape(leaf.shape) != leaf.shape
        whole += leaf.size if placed.shard_shape(leaf.shape) == leaf.shape else 0
    assert split > 250
    assert whole < 1e-3 * sum(leaf.size for leaf in jax.tree.leaves(net))


def test_a_batch_is_split_over_data_and_fsdp(mesh):
    assert batch_sharding(mesh).shard_shape((8, 3)) == (2, 3)


def test_the_data_axis_is_what_is_left():
    assert make_mesh(MeshConfig(fsdp=4), jax.devices()).shape == {"data": 2, "fsdp": 4, "tensor": 1}


@pytest.mark.parametrize("config", [MeshConfig(fsdp=3), MeshConfig(data=4), MeshConfig(fsdp=16)])
def test_a_mesh_of_another_number_of_devices_is_refused(config):
    with pytest.raises(UserError, match=r"does not lay out 8 devices: make the product .* 8$"):
        make_mesh(config, jax.devices())


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match=r"mesh.data=0, mesh.tensor=-1: expected 1 or more"):
        MeshConfig(data=0, tensor=-1)
    with pytest.raises(UserError, match=r"hosts.count, hosts.index missing: the three"):
        HostsConfig(coordinator="a:1")
    with pytest.raises(UserError, match=r"hosts.coordinator=a: expected HOST:PORT"):
        HostsConfig(coordinator="a", count=2, index=0)
    with pytest.raises(UserError, match=r"hosts.index=2: expected 0 to 1"):
        HostsConfig(coordinator="a:1", count=2, index=2)


def test_hosts_that_differ_are_named():
    refuse_difference([("abc", "one"), ("abc", "two")])
    with pytest.raises(UserError, match=r"^two \(process 1\), four \(process 3\) would not run"):
        refuse_difference([("abc", "one"), ("abd", "two"), ("abc", "three"), ("b", "four")])


def test_one_process_stays_alone():
    initialize_distributed()
    initialize_distributed(HostsConfig())
    assert not jax.distributed.is_initialized()


AGREE = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
from fmv2.errors import UserError
from fmv2.parallel import HostsConfig, agree, initialize_distributed
port, index = sys.argv[1:]
initialize_distributed(HostsConfig(coordinator=f"127.0.0.1:{port}", count=2, index=int(index)))
agree("same")
print("AGREED", jax.process_count())
try:
    agree("one" if index == "0" else "two")
except UserError as error:
    print("REFUSED", error)
"""


def test_two_processes_find_each_other_and_compare():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = [
        subprocess.Popen(
            [sys.executable, "-c", AGREE, port, str(index)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for index in range(2)
    ]
    for process in both:
        said = process.communicate(timeout=120)[0]
        assert "AGREED 2\n" in said
        assert re.search(r"REFUSED \S+ \(process 1\) would not run the same as \S+ \(pr", said)

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from fmv2.errors import UserError
from train.checkpoint import About, Checkpoints, digest, good
from train.optimizer import OptimizerConfig
from train.step import init_state

ABOUT = About(config={"steps": 3, "mesh": {"data": None}}, inputs={"base": "abc"}, nets={})
LOADER = json.dumps({"next_batch": 3}).encode()


def make_state(width=8, number=1.0):
    """Every kind of leaf: sharded and whole, float32, bfloat16, counts, flags and a key."""
    net = nnx.Linear(width, 16, rngs=nnx.Rngs(0))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-3, mu_dtype=jnp.bfloat16))
    state = init_state({"adapter": net}, optimizer, OptimizerConfig(), seed=7)
    return jax.tree.map(lambda x: x + number if x.dtype == jnp.float32 else x, state)


def on_mesh(state, shape):
    """The state over so many devices, its first large axis split."""
    mesh = jax.make_mesh(shape, ("fsdp",), devices=jax.devices()[: shape[0]])

    def place(x):
        split = x.ndim > 0 and x.shape[0] % shape[0] == 0 and x.dtype == jnp.float32
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec("fsdp" if split else None)))

    def whole(x):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec()))

    return jax.tree.map(lambda x: place(x) if x.ndim else whole(x), state)


def saved(folder, *steps, state=None, **kept):
    with Checkpoints(folder, **({"keep_last": 9} | kept)) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state() if state is None else state, LOADER, ABOUT)
    return checkpoints.steps()


def test_a_state_comes_back_bit_for_bit_on_another_mesh(tmp_path):
    state = on_mesh(make_state(), (8,))
    before = digest(state)
    saved(tmp_path, 3, state=state)
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        for devices in (1, 2, 4):
            like = on_mesh(make_state(number=9.0), (devices,))
            kernel = like.params["adapter"]["kernel"].sharding
            restored, loader = checkpoints.restore(3, like)
            assert digest(restored) == before
            assert restored.params["adapter"]["kernel"].sharding == kernel
            assert json.loads(loader) == {"next_batch": 3}
            # The key is a key again, and draws the same.
            drawn = [np.asarray(jax.random.normal(s.key, (3,))) for s in (restored, state)]
            assert np.array_equal(*drawn)


def test_what_gives_the_shapes_is_freed_before_the_state_is_read(tmp_path):
    saved(tmp_path, 3)
    like = make_state()
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.restore(3, like)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(like))


def test_a_state_may_be_donated_while_it_is_written(tmp_path):
    state = make_state(width=512)
    before = digest(state)
    change = jax.jit(
        lambda s: dataclasses.replace(s, params=jax.tree.map(jnp.zeros_like, s.params)),
        donate_argnums=0,
    )
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(1, state, LOADER, ABOUT)
        change(state)
        checkpoints.wait()
        restored, _ = checkpoints.restore(1, make_state(width=512, number=5.0))
    assert digest(restored) == before


def test_the_digest_sees_one_bit_and_no_sharding():
    state = make_state()
    assert digest(on_mesh(make_state(), (8,))) == digest(state)
    kernel = state.params["adapter"]["kernel"]
    bits = np.asarray(kernel[...]).view(np.uint32).copy()
    bits[7, 15] ^= 1
    kernel[...] = jnp.asarray(bits.view(np.float32))
    assert digest(state) != digest(make_state())
    assert digest(good(make_state())) == digest(make_state())


def test_the_last_ones_are_kept_and_every_so_many_steps(tmp_path):
    assert saved(tmp_path, *range(1, 10), keep_last=2, keep_every=4) == [4, 8, 9]


def test_a_step_that_is_there_is_not_written_again(tmp_path):
    saved(tmp_path, 3)
    written = (tmp_path / "checkpoints" / "3").stat().st_mtime_ns
    assert saved(tmp_path, 3, state=make_state(number=2.0)) == [3]
    assert (tmp_path / "checkpoints" / "3").stat().st_mtime_ns == written


def test_what_is_half_written_is_never_taken_up_and_goes_away(tmp_path):
    saved(tmp_path, 3)
    half = tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp" / "state"
    half.mkdir(parents=True)
    (half / "manifest.ocdbt").write_bytes(b"cut sho")
    with Checkpoints(tmp_path, keep_last=9) as checkpoints:
        assert checkpoints.steps() == [3]
        checkpoints.save(6, make_state(), LOADER, ABOUT)
    assert checkpoints.steps() == [3, 6]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "6"]


FILL_DISK = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from fmv2.errors import UserError
from tests.train.test_checkpoint import ABOUT, LOADER, make_state
from train.checkpoint import Checkpoints, digest
state = make_state(width=40_000, number=0.0)  # 5 MB with its mean, hard to compress
with Checkpoints(sys.argv[1], keep_last=1) as checkpoints:
    checkpoints.save(1, state, LOADER, ABOUT)
    checkpoints.wait()
try:
    with Checkpoints(sys.argv[1], keep_last=1) as checkpoints:
        checkpoints.save(2, state, LOADER, ABOUT)
    print("WRITTEN")
except UserError as error:
    print("REFUSED", error)
with Checkpoints(sys.argv[1], keep_last=1) as checkpoints:
    before = digest(state)
    print(checkpoints.steps(), digest(checkpoints.restore(1, state)[0]) == before)
"""


def test_a_full_disk_is_said_and_leaves_the_last_checkpoint_whole(tmp_path):
    """On a real file system of 8 MB, mounted in a namespace of its own."""
    mount = f"mount -t tmpfs -o size=8m none {tmp_path}"
    alone = ["unshare", "-rm", "sh", "-c"]
    if subprocess.run([*alone, mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small file system; see the next test")
    script = f'{mount} && exec "$0" -c "$1" {tmp_path}/run'
    run = subprocess.run(
        [*alone, script, sys.executable, FILL_DISK],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )
    lines = run.stdout.splitlines()
    assert lines[-1:] == ["[1] True"], run.stdout + run.stderr
    assert lines[0].startswith(f"REFUSED {tmp_path}/run/checkpoints: ")
    assert "no space left on the device; that of step 1 is whole: make room" in lines[0]
    # Orbax logs nothing of it. A write that fails late may still find its event loop closed, which
    # TensorStore prints from a thread of its own.
    assert "No space left" not in run.stderr


def test_a_writer_out_of_space_is_a_user_error_whichever_call_hears_of_it(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path, keep_last=1)

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", refuse)
    monkeypatch.setattr(checkpoints._manager, "save", refuse)
    for call in (
        checkpoints.wait,
        lambda: checkpoints.save(2, make_state(), LOADER, ABOUT),
    ):
        with pytest.raises(UserError, match="no space left on the device; that of step 1 is whole"):
            call()
    monkeypatch.undo()
    checkpoints.close()


def test_a_defect_is_not_taken_for_the_disk(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:

        def crash(*_, **__):
            raise ValueError("a defect")

        with monkeypatch.context() as patch, contextlib.suppress(AttributeError):
            patch.setattr(checkpoints._manager, "save", crash)
            with pytest.raises(ValueError, match="a defect"):
                checkpoints.save(2, make_state(), LOADER, ABOUT)

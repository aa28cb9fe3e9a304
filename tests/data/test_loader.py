"""One stream of batches, whoever reads it, with however many processes and from wherever."""

import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data.dataset import open_dataset
from data.loader import Loader, LoaderConfig
from data.sample import Drops
from fmv2.errors import UserError
from tests.data.faces import EVERYTHING, Words, face_record, write_dataset

CONFIG = LoaderConfig(batch_size=8, size=32, mask_grids=(8, 4), face_size=16, flip=0.3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("d") / "set"
    return open_dataset(write_dataset(folder, {"train": (17, 23), "test": (3,)}))


def batches(
    dataset, count: int, config: LoaderConfig = CONFIG, *, start: bytes | None = None, **at
):
    with Loader(dataset, "train", Words(), config, **at) as loader:
        if start is not None:
            loader.restore(start)
        return list(itertools.islice(loader, count))


def digest(batch) -> str:
    """Of every byte, and of what they mean."""
    leaves, tree = jax.tree.flatten(batch)
    about = [(x.shape, x.dtype.name) for x in leaves]
    return hashlib.sha256(
        str((tree, about)).encode() + b"".join(np.asarray(x).tobytes() for x in leaves)
    ).hexdigest()


def assert_same(found, expected):
    assert [digest(batch) for batch in found] == [digest(batch) for batch in expected]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_hundred_batches_do_not_depend_on_workers(dataset, workers):
    expected = batches(dataset, 100)
    assert len({digest(batch) for batch in expected}) == 100
    assert_same(batches(dataset, 100, dataclasses.replace(CONFIG, workers=workers)), expected)


def test_another_seed_is_another_stream(dataset):
    other = batches(dataset, 10, dataclasses.replace(CONFIG, seed=1))
    assert not {digest(b) for b in other} & {digest(b) for b in batches(dataset, 10)}


def test_hosts_are_disjoint_and_complete_over_an_epoch(dataset):
    config = dataclasses.replace(CONFIG, epochs=3)
    hosts = [batches(dataset, 99, config, process_index=n, process_count=2) for n in range(2)]
    indices = [np.stack([batch.index for batch in host]) for host in hosts]
    assert indices[0].shape == indices[1].shape == (15, 4)
    for epoch in range(3):
        seen = np.concatenate([host[5 * epoch : 5 * epoch + 5].ravel() for host in indices])
        np.testing.assert_array_equal(np.sort(seen), np.arange(40))
    orders = {tuple(indices[0][5 * epoch : 5 * epoch + 5].ravel()) for epoch in range(3)}
    assert len(orders) == 3  # shuffled anew


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_global_batch_does_not_depend_on_hosts(dataset, hosts):
    whole = batches(dataset, 6)
    parts = [batches(dataset, 6, process_index=n, process_count=hosts) for n in range(hosts)]
    joined = [
        jax.tree.map(lambda *part: np.concatenate(part), *batch)
        for batch in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_a_batch_reaches_over_the_end_of_an_epoch(dataset):
    config = dataclasses.replace(CONFIG, batch_size=12)
    seen = np.concatenate([batch.index for batch in batches(dataset, 10, config)])
    for epoch in seen.reshape(3, 40):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(40))


@pytest.mark.parametrize("workers", [0, 2])
def test_restored_goes_on_with_the_next_batch(dataset, workers):
    expected = batches(dataset, 13)
    config = dataclasses.replace(CONFIG, workers=workers)
    with Loader(dataset, "train", Words(), config) as loader:
        for _ in range(7):
            next(loader)
        state = loader.state()
        if workers == 0:
            next(loader)
            loader.restore(state)  # backwards, in a loader that runs
            assert digest(next(loader)) == digest(expected[7])
    assert_same(batches(dataset, 6, config, start=state), expected[7:])
    # Neither workers nor hosts are part of the stream.
    part = batches(dataset, 1, start=state, process_index=1, process_count=2)
    np.testing.assert_array_equal(part[0].index, expected[7].index[4:])


def test_another_stream_is_not_restored(dataset):
    with Loader(dataset, "train", Words(), CONFIG) as loader:
        next(loader)
        state = loader.state()
    other = dataclasses.replace(CONFIG, batch_size=16, seed=3, drops=Drops(text=0.2))
    with pytest.raises(UserError, match=r"batch_size was 8, is 16; drops was .*; seed was 0, is 3"):
        Loader(dataset, "train", Words(), other).restore(state)
    with pytest.raises(UserError, match=r"records was 40, is 3; split was train, is test"):
        Loader(dataset, "test", Words(), CONFIG).restore(state)


def test_batches_lie_on_the_mesh_as_on_the_host(dataset):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    for workers in (0, 1):
        config = dataclasses.replace(CONFIG, workers=workers)
        placed = batches(dataset, 3, config, sharding=sharding)
        assert_same(placed, batches(dataset, 3))
        for leaf in jax.tree.leaves(placed):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
            assert len(leaf.addressable_shards) == 8
            assert leaf.addressable_shards[0].data.shape == (1, *leaf.shape[1:])


def test_the_end(dataset):
    config = dataclasses.replace(CONFIG, epochs=1, batch_size=16)
    assert len(batches(dataset, 99, config)) == 2  # 8 of 40 fill no batch


def test_optional_fields_arrive(tmp_path):
    folder = write_dataset(tmp_path / "set", {"train": (4,)}, schema=EVERYTHING)
    extras = ("labels", "coefficients", "latent_moments", "factors")
    config = LoaderConfig(batch_size=4, size=32, face_size=16, mask_grids=(), extras=extras)
    with Loader(open_dataset(folder), "train", Words(), config) as loader:
        batch = next(loader)
    assert batch.masks == {}
    for row, number in enumerate(batch.index):
        record = face_record(int(number), EVERYTHING)
        pose = record.optional["coefficients/pose"]
        np.testing.assert_array_equal(batch.coefficients["pose"][row], pose)
        moments = record.optional["latent_moments"]
        np.testing.assert_array_equal(batch.latent_moments[row], moments)
        assert batch.factors["identity"][row] == number // 2
    assert batch.labels.shape == (4, 32, 32)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_record_is_named(tmp_path, workers):
    def damaged(number, schema):
        record = face_record(number, schema)
        return dataclasses.replace(record, image=record.image[:99]) if number == 5 else record

    folder = write_dataset(tmp_path / "set", {"train": (6,)}, record=damaged)
    config = dataclasses.replace(CONFIG, workers=workers)
    message = r"set, split 'train', record 5 \('person-5'\): 99 bytes are not a picture.*build it"
    with pytest.raises(UserError, match=message):
        batches(open_dataset(folder), 1, config)


def test_a_damaged_shard_is_named(tmp_path):
    folder = write_dataset(tmp_path / "set", {"train": (30,)})
    (shard,) = folder.glob("*.array_record*")
    content = bytearray(shard.read_bytes())
    content[70_000:90_000] = bytes(20_000)
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"split 'train', record \d+: .*shard is damaged"):
        batches(open_dataset(folder), 4)


def test_what_cannot_work_is_refused(dataset, tmp_path):
    with pytest.raises(UserError, match=r"another tokenizer|token masks of the tokenizer"):
        Loader(dataset, "train", Words(("", "a")), CONFIG)
    with pytest.raises(UserError, match=r"batch_size 8 cannot be shared out among 3 hosts"):
        Loader(dataset, "train", Words(), CONFIG, process_count=3)
    wanted = dataclasses.replace(CONFIG, flip=0, extras=("labels", "factors"))
    with pytest.raises(UserError, match=r"no factors, labels"):
        Loader(dataset, "train", Words(), wanted)
    with pytest.raises(UserError, match=r"3 samples in 1 epochs fill no batch of 8"):
        Loader(dataset, "test", Words(), dataclasses.replace(CONFIG, epochs=1))
    folder = write_dataset(
        tmp_path / "set", {"train": (4,)}, schema=EVERYTHING, metadata={"tokenizer": "short"}
    )
    short = Words(("", "a", "red", "hat"))
    short.fingerprint = "short"
    with pytest.raises(UserError, match=r'flip needs "left" and "right"'):
        Loader(open_dataset(folder), "train", short, CONFIG)


def test_all_faults_of_a_config_at_once():
    with pytest.raises(UserError) as caught:
        LoaderConfig(
            batch_size=0,
            size=-1,
            seed=-1,
            mask_grids=(32, 0),
            flip=1.5,
            drops=Drops(text=0.5, id=0.5, both=0.5),
            extras=("coefficients",),
            epochs=0,
            workers=-1,
        )
    said = str(caught.value)
    for part in ("batch_size", "size", "mask_grids", "epochs", "flip must be", "drops.text +"):
        assert part in said
    assert "seed must be 0" in said
    assert "workers must be 0" in said
    assert "flip mirrors no coefficients" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_ends_the_job_lets_workers_end_their_batches(dataset, number):
    """A terminal and SLURM send it to every process: the trainer still has a step to end."""
    expected = batches(dataset, 6)
    with Loader(dataset, "train", Words(), dataclasses.replace(CONFIG, workers=1)) as loader:
        found = [next(loader)]
        workers = multiprocessing.active_children()
        assert workers
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, number)
        found += itertools.islice(loader, 5)
    assert_same(found, expected)


def test_workers_leave_devices_alone(dataset, tmp_path):
    """What a worker does, in a fresh process: a TPU has one owner, and it is not a worker."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import json, sys
from pathlib import Path
from data.dataset import open_dataset
from data.loader import Loader, LoaderConfig
from tests.data.faces import Words

if __name__ == "__main__":
    config = LoaderConfig(batch_size=8, size=32, mask_grids=(8, 4), face_size=16, flip=0.3)
    loader = Loader(open_dataset({dataset.path!r}), "train", Words(), config)
    index = loader.batches()[0].index
    from jax._src import xla_bridge
    print(json.dumps([index.tolist(), xla_bridge.backends_are_initialized()]))
    print(json.dumps([name for name in ("tensorflow", "torch", "flax") if name in sys.modules]))
"""
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, script], cwd=root, env={"PYTHONPATH": str(root)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, heavy = map(json.loads, done.stdout.splitlines())
    assert first == [batches(dataset, 1)[0].index.tolist(), False]
    assert heavy == []

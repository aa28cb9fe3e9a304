"""Records on disk to batches on devices: shuffled, shared out among hosts, and resumable.

The stream is one for the whole run: its positions 0, 1, 2, … go through the records of one epoch
after another, each epoch shuffled anew. Global batch n is the next `batch_size` positions, and a
host reads its own equal part of them. So hosts never overlap, any N consecutive positions of an
epoch of N records hold each record once, a batch may reach over the end of an epoch, and no record
is ever left out. What a batch holds depends on the seed and n alone: not on workers, not on hosts.
"""

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from typing import Any, Literal

import cv2
import grain
import jax
import numpy as np
from absl import flags
from grain.multiprocessing import SharedMemoryArray

from data.dataset import Dataset, Records
from data.geometry import MaskResize
from data.sample import Dice, Drops, Sampler, sides
from data.schema import Batch
from fmv2.errors import UserError
from fmv2.tokens import Tokens

Extra = Literal["labels", "coefficients", "latent_moments", "factors"]

_GRACE = 20
"""Seconds that a worker process lives on after SIGTERM."""
_MOST_THREADS = 4  # without worker processes: they share one interpreter lock


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What batches are made of."""

    batch_size: int
    """Samples of all hosts together."""
    size: int
    """Side of image and shading in pixels; other pictures are cropped to a square and resized."""
    seed: int = 0
    """Of the order and of every choice; below 2³²."""
    mask_grids: tuple[int, ...] = (32,)
    """Sides of the attention grids that masks are wanted on; empty for none."""
    mask_resize: MaskResize = "area"
    """`area`: the covered fraction of a cell; `bilinear`: as published, thin regions vanish."""
    face_size: int = 224
    """Side of the aligned face in pixels."""
    attribute: float = 0.5
    """How often the attribute caption is drawn; else the emotion caption."""
    drops: Drops = dataclasses.field(default_factory=Drops)
    flip: float = 0.0
    """How often a sample is mirrored, "left" and "right" in its caption too."""
    extras: tuple[Extra, ...] = ()
    """Optional fields of the batch."""
    epochs: int | None = None
    """Passes over the records; None never ends."""
    workers: int = 0
    """Processes that decode; 0 uses threads of this one. Batches come from them through shared
    memory, and a script needs `if __name__ == "__main__":` around what it runs."""

    def __post_init__(self):
        counts = {name: getattr(self, name) for name in ("batch_size", "size", "face_size")}
        counts |= {"mask_grids": min(self.mask_grids, default=1)}
        counts |= {"epochs": 1 if self.epochs is None else self.epochs}
        faults = [f"{name} must be at least 1, got {n}" for name, n in counts.items() if n < 1]
        chances = {f"drops.{k}": getattr(self.drops, k) for k in ("text", "id", "both", "face")}
        chances |= {"attribute": self.attribute, "flip": self.flip}
        faults += [
            f"{name} must be a probability, 0 to 1, got {chance}"
            for name, chance in chances.items()
            if not 0 <= chance <= 1
        ]
        exclusive = self.drops.text + self.drops.id + self.drops.both
        if exclusive > 1:
            faults.append(f"drops.text + drops.id + drops.both must be at most 1, got {exclusive}")
        if not 0 <= self.seed < 2**32:
            faults.append(f"seed must be 0 to 2**32 - 1, got {self.seed}")
        if self.workers < 0:
            faults.append(f"workers must be 0 or more, got {self.workers}")
        fixed = sorted({"coefficients", "latent_moments", "factors"} & set(self.extras))
        if self.flip and fixed:
            faults.append(f"flip mirrors no {', '.join(fixed)}: set flip to 0 or leave them out")
        if faults:
            raise UserError("the loader cannot work so: " + "; ".join(faults))


class Loader(Iterator[Batch]):
    """Batches without end, or for so many epochs. Close it, or use it in a `with` block."""

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        tokens: Tokens,
        config: LoaderConfig,
        *,
        process_index: int = 0,
        process_count: int = 1,
        sharding: jax.sharding.Sharding | None = None,
    ):
        """
        Args:
          tokens: of the model's text encoder; it must be the one that the token masks belong to.
          process_index: which part of each global batch this host reads, out of `process_count`;
            usually `jax.process_index()` and `jax.process_count()`.
          sharding: where a batch's first axis goes. Without it, batches are the host's, in NumPy.
        Raises:
          UserError: data set, tokenizer and config do not go together; all faults are named.
        """
        records = dataset.source(split, config.extras)
        dataset.check_tokenizer(tokens)
        faults = _faults(dataset, records, tokens, config, process_count)
        if faults:
            raise UserError(f"{dataset.path}, split {split!r}: " + "; ".join(faults))
        assert 0 <= process_index < process_count
        self._config = config
        self._sharding = sharding
        self._stream = {
            **dataclasses.asdict(config),
            "split": split,
            "records": len(records),
            "tokenizer": tokens.fingerprint,
        }
        for name in ("workers", "epochs"):  # the batches before the end are the same with any
            del self._stream[name]
        sampler = Sampler(
            tokens=tokens,
            size=config.size,
            face_size=config.face_size,
            grids=config.mask_grids,
            mask_resize=config.mask_resize,
            extras=frozenset(config.extras),
        )
        part = config.batch_size // process_count
        self._host = _Host(records, sampler, config, process_index * part, part)
        self._next = 0
        self._iterator: Any = None

    def __next__(self) -> Batch:
        """
        Raises:
          UserError: a record is damaged.
        """
        if self._iterator is None:
            self._iterator = iter(self._ahead())
        batch = next(self._iterator)
        self._next += 1
        return batch if self._sharding is None else self._place(batch)

    def state(self) -> bytes:
        """Where the stream is, for `restore`: the same on all hosts. JSON."""
        return json.dumps({"next_batch": self._next, "stream": self._stream}).encode()

    def restore(self, state: bytes) -> None:
        """Goes on where another loader of the same stream was, whatever its workers and hosts.

        Raises:
          UserError: it was another stream; every difference is named.
        """
        saved = json.loads(state)
        ours = json.loads(json.dumps(self._stream))  # tuples as JSON has them
        differences = [
            f"{name} was {saved['stream'].get(name)}, is {ours.get(name)}"
            for name in sorted(saved["stream"].keys() | ours.keys())
            if saved["stream"].get(name) != ours.get(name)
        ]
        if differences:
            raise UserError(
                f"the saved run read other batches: {'; '.join(differences)}."
                " Resume it with its own settings, or start a new run"
            )
        self.close()
        self._next = saved["next_batch"]

    def close(self) -> None:
        """Ends worker processes; the next batch starts new ones."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def batches(self) -> grain.MapDataset[Batch]:
        """This host's part of each global batch, by its number, made when it is asked for."""
        order = grain.MapDataset.range(len(self._host.records)).shuffle(self._config.seed)
        numbers = order.repeat(self._config.epochs)
        numbers = numbers.batch(self._config.batch_size, drop_remainder=True)
        return numbers.map_with_index(self._host.batch)

    def _ahead(self) -> grain.IterDataset[Batch]:
        """The batches to come, made before they are asked for."""
        workers = self._config.workers
        batches = self.batches()[self._next :]
        if workers == 0:
            threads = min(_MOST_THREADS, os.cpu_count() or 1)
            return batches.to_iter_dataset(grain.ReadOptions(threads, threads + 1))
        if not flags.FLAGS.is_parsed():  # Grain reads its own, and this is no absl program
            flags.FLAGS.mark_as_parsed()
        # A batch may be hundreds of MB: each process holds the one at work and the next.
        return batches.to_iter_dataset(grain.ReadOptions(0, 0)).mp_prefetch(
            grain.MultiprocessingOptions(workers, per_worker_buffer_size=1),
            worker_init_fn=_begin_worker,
        )

    def _place(self, batch: Batch) -> Batch:
        rows = self._config.batch_size

        def place(local: np.ndarray) -> jax.Array:
            shape = (rows, *local.shape[1:])
            return jax.make_array_from_process_local_data(self._sharding, local, shape)

        return jax.tree.map(place, batch)


@dataclasses.dataclass(frozen=True, eq=False)
class _Host:
    """Makes this host's part of each global batch, in whichever process it finds itself."""

    records: Records
    sampler: Sampler
    config: LoaderConfig
    first: int
    count: int

    def batch(self, number: int, records: np.ndarray) -> Batch:
        """Global batch `number`, which is made of these records."""
        start = number * self.config.batch_size + self.first
        # One sample at a time goes to its place, which workers have in shared memory: stacking all
        # of them at the end, and copying the stack, costs as much as decoding an image.
        empty = SharedMemoryArray if self.config.workers else np.empty
        batch = None
        for row in range(self.count):
            sample = self.sample(start + row, int(records[self.first + row]))
            if batch is None:
                batch = jax.tree.map(lambda x: empty((self.count, *x.shape), x.dtype), sample)
            for whole, one in zip(jax.tree.leaves(batch), jax.tree.leaves(sample), strict=True):
                whole[row] = one
        assert batch is not None
        return batch

    def sample(self, position: int, number: int) -> Batch:
        config = self.config
        dice = Dice.throw(
            config.seed, position, attribute=config.attribute, drops=config.drops, flip=config.flip
        )
        record = self.records[number]
        try:
            return self.sampler(number, record, dice)
        except ValueError as error:
            raise self.records.fault(number, record["key"], error) from error


def _begin_worker(worker: int, workers: int) -> None:
    """OpenCV leaves the other cores to the other workers. Ctrl-C, and a scheduler's SIGTERM to all
    processes of a job, are for the one that reads the batches: it may want some to end well."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))


def _faults(
    dataset: Dataset, records: Records, tokens: Tokens, config: LoaderConfig, hosts: int
) -> list[str]:
    """Why these do not go together."""
    faults = []
    if config.batch_size % hosts:
        faults.append(
            f"batch_size {config.batch_size} cannot be shared out among {hosts} hosts:"
            " make it a multiple"
        )
    wanted = len(records) * (config.epochs or 0)
    if not len(records):
        faults.append("it is empty")
    elif config.epochs is not None and wanted < config.batch_size:
        faults.append(
            f"{wanted} samples in {config.epochs} epochs fill no batch of {config.batch_size}:"
            " ask for more epochs or smaller batches"
        )
    there = {name.split("/")[0] for name in dataset.schema.optional}
    there |= {"factors"} if dataset.schema.factors else set()
    if missing := sorted(set(config.extras) - there):
        faults.append(f"its records have no {', '.join(missing)}: leave them out of extras")
    if config.flip and None in sides(tokens):
        faults.append('flip needs "left" and "right" to be one token each: set flip to 0')
    return faults

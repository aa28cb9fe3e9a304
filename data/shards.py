"""A source of records to a TFDS data set, shard by shard, on Apache Beam.

What a shard holds is fixed before anything is written, so a run that was killed goes on from the
shards it finished and ends with the same bytes. `data.ledger` keeps the books.
"""

import contextlib
import dataclasses
import functools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from etils import epath

from data.codec import Example, Record, to_example
from data.ledger import PROBLEMS, Ledger, Sidecar
from data.schema import VERSION, Schema, nest
from fmv2.errors import UserError

NAME = "fmv2"
"""Every data set's, in file names and in TFDS."""


class Shard(NamedTuple):
    """One file of a split, and the source's items that belong in it."""

    split: str
    number: int
    of: int
    items: Sequence[int]

    @property
    def file(self) -> str:
        return f"{NAME}-{self.split}.array_record-{self.number:05d}-of-{self.of:05d}"


class Skipped(NamedTuple):
    """An item that became no record."""

    item: str
    reason: str


class Mended(NamedTuple):
    """A lesser fault of a record that was kept all the same; counted by its kind."""

    kind: str
    times: int = 1


class Source(Protocol):
    """Where records come from.

    It is pickled and travels to worker processes: what is heavy is made there, when first needed.
    """

    @property
    def schema(self) -> Schema: ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What readers should know and what was asked for, as JSON can hold it.

        It becomes TFDS' metadata.json. It always has "source" and "tokenizer", the fingerprint of
        the tokenizer that the token masks belong to.
        """
        ...

    def shards(self) -> Sequence[Shard]:
        """All of the data set, always the same; splits one after another."""
        ...

    def fingerprint(self) -> str:
        """Of everything that decides the bytes."""
        ...

    def records(self, items: Sequence[int]) -> Iterator[Record | Example | Skipped | Mended]:
        """Of these items, in their order.

        Raises:
          UserError: the whole run must stop.
        """
        ...


class Summary(NamedTuple):
    """What a data set holds and what this run did for it."""

    records: Mapping[str, int]
    """By split; none is empty."""
    skipped: int
    mended: Mapping[str, int]
    """How often, by kind of fault."""
    bytes: int
    """Of all shards' files."""
    written: int
    """Records that this run wrote; the others were there."""
    seconds: float

    def describe(self, out: epath.PathLike) -> str:
        """For the console."""
        splits = " and ".join(f"{count} {split}" for split, count in self.records.items())
        lines = [f"{out}: {splits} records in {self.bytes / 2**20:.1f} MiB"]
        if self.written:
            rate = self.written / self.seconds
            lines.append(f"{self.written} written in {self.seconds:.1f} s, {rate:.1f} records/s")
        else:
            lines.append("finished before: nothing was left to do")
        if self.skipped:
            lines.append(f"{self.skipped} items left out, see {epath.Path(out) / PROBLEMS}")
        lines += [f"mended: {count} {kind}" for kind, count in self.mended.items()]
        return "\n".join(lines)


def write(
    source: Source,
    out: epath.PathLike,
    *,
    runner: str = "DirectRunner",
    runner_options: Sequence[str] = (),
    workers: int = 1,
    progress: bool = True,
    before: Callable[[], None] | None = None,
) -> Summary:
    """Writes the source's data set, or what of it earlier runs left undone.

    Args:
      out: a free folder, or one of this very data set; an address such as gs:// too.
      runner: Apache Beam's, by name.
      runner_options: Beam's own for that runner, as `name=value`.
      workers: processes of the DirectRunner; one works inside this process.
      progress: whether to show a bar on a terminal.
      before: called once if there is anything to write, such as a check of all inputs.
    Raises:
      UserError: `out` holds something else, an input is bad, or every item was left out.
      KeyboardInterrupt: after the workers have stopped.
    """
    from data import beam, console

    start = time.monotonic()
    ledger = Ledger(out)
    shards = source.shards()
    files = [shard.file for shard in shards]
    fingerprint = source.fingerprint()
    ledger.check({"form": VERSION, **source.metadata}, fingerprint)
    done = ledger.sidecars(files)
    todo = [number for number, file in enumerate(files) if file not in done]
    if todo or not ledger.finished:
        with ledger.claimed():
            if todo and before is not None:
                before()
            work = _Work(source, str(out), fingerprint)
            sizes = {files[number]: len(shards[number].items) for number in todo}
            with (
                console.following(
                    "writing", sum(sizes.values()), lambda: ledger.progress(sizes), shown=progress
                ),
                _interruptible(ledger),
            ):
                beam.run(work, todo, runner, runner_options, workers)
            done = ledger.sidecars(files)
            _finish(ledger, source, shards, done)
    else:
        ledger.clean()
    skipped, mended = _faults(done)
    return Summary(
        _records(shards, done),
        skipped=skipped,
        mended=mended,
        bytes=sum(sidecar.size for sidecar in done.values()),
        written=sum(done[files[number]].records for number in todo),
        seconds=time.monotonic() - start,
    )


@dataclasses.dataclass(frozen=True)
class _Work:
    """What a worker does with the number of a shard."""

    source: Source
    out: str
    fingerprint: str

    def __call__(self, number: int) -> None:
        ledger = Ledger(self.out)
        if ledger.stopped() is not None:
            return
        try:
            if self.source.fingerprint() != self.fingerprint:
                raise UserError("the inputs changed during the run: start it again")
            self._write(ledger, self._shards[number])
        except UserError as error:
            ledger.stop(str(error))
        except OSError as error:  # such as a full disk
            ledger.stop(f"{error.filename or self.out}: {error.strerror or error}")

    @functools.cached_property
    def _shards(self) -> Sequence[Shard]:
        return self.source.shards()

    def _write(self, ledger: Ledger, shard: Shard) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        from data.quiet_tfds import tfds

        schema = self.source.schema
        features = schema.features()
        core: Any = tfds.core  # which names this module to importers alone
        serializer = core.example_serializer.ExampleSerializer(features.get_serialized_info())
        records, total, skipped, mended = 0, 0, [], Counter()
        with ledger.writing(shard.file) as (path, advance):
            # One record a group, so that each can be read alone.
            with contextlib.closing(ArrayRecordWriter(str(path), "group_size:1")) as writer:
                for found in self.source.records(shard.items):
                    match found:
                        case Mended(kind, times):
                            mended[kind] += times
                            continue
                        case Skipped():
                            skipped.append(tuple(found))
                        case Record() | Example():
                            example = features.encode_example(_fields(found, schema))
                            message = serializer.get_tf_example(example)
                            # A map's order is otherwise another one in every process.
                            serialized = message.SerializeToString(deterministic=True)
                            writer.write(serialized)
                            records += 1
                            total += len(serialized)
                    if not advance():
                        return
            ledger.publish(
                shard.file, path, Sidecar(records, total, path.stat().st_size, skipped, mended)
            )


def _fields(found: Record | Example, schema: Schema) -> Mapping[str, Any]:
    return to_example(found, schema) if isinstance(found, Record) else nest(found.fields)


@contextlib.contextmanager
def _interruptible(ledger: Ledger) -> Iterator[None]:
    """Lets Ctrl-C stop the workers first: Beam waits for them, whatever is raised in here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = []

    def stop(*_: Any) -> None:
        if not interrupted:  # by the descriptor: the signal may have come amid a print
            os.write(2, b"stopping: each worker first ends what it compiles or draws\n")
        interrupted.append(True)
        ledger.stop("")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt


def _finish(
    ledger: Ledger, source: Source, shards: Sequence[Shard], done: Mapping[str, Sidecar]
) -> None:
    if reason := ledger.stopped():
        raise UserError(reason)
    if missing := [shard.file for shard in shards if shard.file not in done]:
        raise UserError(
            f"{ledger.out}: {len(missing)} of {len(shards)} shards did not arrive, such as "
            f"{missing[0]}: the workers need storage that they share with this machine"
        )
    problems = [problem for sidecar in done.values() for problem in sidecar.skipped]
    ledger.report(problems)
    records = _records(shards, done)
    if not records:
        raise UserError(
            f"{ledger.out}: all {len(problems)} items were left out: see {PROBLEMS} there"
        )
    from data.quiet_tfds import tfds

    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=NAME, version=tfds.core.Version(VERSION), data_dir=str(ledger.out), module_name=""
        ),
        features=source.schema.features(),
        metadata=tfds.core.MetadataDict(source.metadata),
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    splits = [_split_info(split, ledger.out, shards, done) for split in records]
    info.set_splits(tfds.core.SplitDict(splits))
    info.write_to_directory(ledger.out)
    ledger.finish(done)


def _split_info(
    split: str, out: epath.Path, shards: Sequence[Shard], done: Mapping[str, Sidecar]
) -> Any:
    from data.quiet_tfds import tfds

    sidecars = [done[shard.file] for shard in shards if shard.split == split]
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=[sidecar.records for sidecar in sidecars],
        num_bytes=sum(sidecar.bytes for sidecar in sidecars),
        filename_template=tfds.core.ShardedFileTemplate(
            dataset_name=NAME, split=split, data_dir=out, filetype_suffix="array_record"
        ),
    )


def _records(shards: Sequence[Shard], done: Mapping[str, Sidecar]) -> dict[str, int]:
    """By split; TFDS has no word for an empty one."""
    counts: Counter[str] = Counter()
    for shard in shards:
        counts[shard.split] += done[shard.file].records
    return dict(+counts)


def _faults(done: Mapping[str, Sidecar]) -> tuple[int, dict[str, int]]:
    mended: Counter[str] = Counter()
    for sidecar in done.values():
        mended.update(sidecar.mended)
    return sum(len(sidecar.skipped) for sidecar in done.values()), dict(sorted(mended.items()))

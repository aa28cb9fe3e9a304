"""The books of a data set that is being written, in its own folder.

    OUT/fmv2-train.array_record-00000-of-00016 …   whole from the moment they have this name
    OUT/dataset_info.json, features.json, metadata.json   TFDS' own, written when all shards are
    OUT/problems.jsonl   the items that were left out, one a line; absent if there are none
    OUT/shards.json      plan and sidecars, written last: with it the data set is finished
    OUT/.building/       the plan, a sidecar per finished shard, unfinished files; gone at the end

A sidecar is written after its shard, and every file gets its name when it is whole. So whatever
moment a run is killed at, it loses the shards in work and no others.
"""

import contextlib
import fcntl
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from fmv2.errors import UserError

PROBLEMS = "problems.jsonl"
_FINISHED = "shards.json"


class Sidecar(NamedTuple):
    """What is known of a finished shard."""

    records: int
    bytes: int
    """Of the serialized examples, as TFDS counts."""
    size: int
    """Of the file."""
    skipped: Sequence[Sequence[str]]
    """Item and reason."""
    mended: Mapping[str, int]


class Ledger:
    """The folder of one data set; workers open their own of the same folder."""

    def __init__(self, out: epath.PathLike):
        self.out = epath.Path(out)
        self._building = self.out / ".building"
        self._plan = self._building / "plan.json"
        self._running = self._building / "running"
        self._stop = self._running / "stop"
        self._local = "://" not in str(self.out)

    @property
    def finished(self) -> bool:
        return (self.out / _FINISHED).exists()

    def check(self, about: Mapping[str, Any], fingerprint: str) -> None:
        """Takes the folder for this data set, unless shards of another are there.

        Raises:
          UserError: it holds anything else, or cannot be read.
        """
        self._content = json.loads(json.dumps({"about": about, "fingerprint": fingerprint}))
        try:
            there = {path.name for path in self.out.iterdir()} if self.out.exists() else set()
        except OSError as error:
            raise UserError(f"{self.out}: no folder: {error.strerror or error}") from error
        strangers = there - {self._building.name, PROBLEMS}
        plan = self.out / _FINISHED if _FINISHED in strangers else self._plan
        if strangers and not plan.exists():
            raise UserError(
                f"{self.out} holds {sorted(strangers)[0]!r} and no data set begun by this command: "
                "give --out a free folder"
            )
        if strangers:
            _refuse_other(self.out, json.loads(plan.read_text()), self._content)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """For one run alone, after `check`; what was left half written is cleared away.

        Raises:
          UserError: it cannot be written, or another run is at it.
        """
        try:
            self._building.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.out}: cannot be written: {error.strerror or error}") from error
        with contextlib.ExitStack() as stack:
            if self._local:
                folder = os.open(self._building, os.O_RDONLY)
                stack.callback(os.close, folder)
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UserError(
                        f"{self.out}: another run is writing there: wait for it"
                    ) from None
            if self._running.exists():
                self._running.rmtree()
            self._running.mkdir()
            self._write(self._plan, self._content)
            yield

    def sidecars(self, files: Sequence[str]) -> dict[str, Sidecar]:
        """Those of these shards that are whole, in the order asked for."""
        known: dict[str, Any] = {}
        if self.finished:
            known = json.loads((self.out / _FINISHED).read_text())["shards"]
        with ThreadPoolExecutor(16) as pool:  # for storage that is far away
            found = pool.map(lambda file: self._sidecar(file, known.get(file)), files)
            return {file: one for file, one in zip(files, found, strict=True) if one}

    def _sidecar(self, file: str, known: Mapping[str, Any] | None) -> Sidecar | None:
        try:
            content = known or json.loads((self._building / f"{file}.json").read_text())
            sidecar = Sidecar(**content)
            return sidecar if (self.out / file).stat().length == sidecar.size else None
        except (FileNotFoundError, NotADirectoryError):
            return None

    @contextlib.contextmanager
    def writing(self, file: str) -> Iterator[tuple[Path, Callable[[], bool]]]:
        """A local path to write a shard to, and what to call after each item.

        That returns False when the run has been stopped.
        """
        name = f"{file}.{uuid.uuid4().hex}"  # some runners start a shard twice
        if not self._local:
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder) / name, lambda: True
            return
        with Path(self._running / f"{file}.progress").open("wb", buffering=0) as progress:

            def advance() -> bool:
                progress.write(b".")
                return not self._stop.exists()

            yield Path(self._running / name), advance

    def publish(self, file: str, path: Path, sidecar: Sidecar) -> None:
        """Gives a whole shard its name, then says that it is there."""
        if self._local:
            path.replace(self.out / file)
        else:
            epath.Path(path).copy(self.out / file, overwrite=True)
        self._write(self._building / f"{file}.json", sidecar._asdict())

    def progress(self, items: Mapping[str, int]) -> int:
        """How many items this run has come through, given how many each of its shards has."""
        if self._local:
            with os.scandir(self._running) as entries:
                return sum(e.stat().st_size for e in entries if e.name.endswith(".progress"))
        names = {path.name.removesuffix(".json") for path in self._building.iterdir()}
        return sum(count for file, count in items.items() if file in names)

    def stop(self, reason: str) -> None:
        """Lets all workers stop, for one reason."""
        self._write(self._stop, reason)

    def stopped(self) -> str | None:
        """The reason, if the run has been stopped; empty if by Ctrl-C."""
        return json.loads(self._stop.read_text()) if self._stop.exists() else None

    def report(self, problems: Sequence[Sequence[str]]) -> None:
        """Writes PROBLEMS, or removes it if there are none."""
        path = self.out / PROBLEMS
        if problems:
            lines = [json.dumps({"item": item, "problem": problem}) for item, problem in problems]
            self._write(path, "\n".join(lines) + "\n", raw=True)
        else:
            path.unlink(missing_ok=True)

    def finish(self, done: Mapping[str, Sidecar]) -> None:
        """Says that the data set is whole."""
        shards = {file: sidecar._asdict() for file, sidecar in done.items()}
        self._write(self.out / _FINISHED, {**self._content, "shards": shards})
        self.clean()

    def clean(self) -> None:
        if self._building.exists():
            self._building.rmtree()

    def _write(self, path: epath.Path, content: Any, *, raw: bool = False) -> None:
        text = content if raw else json.dumps(content, indent=1)
        if self._local:
            part = self._running / uuid.uuid4().hex
            part.write_text(text)
            part.replace(path)
        else:
            path.write_text(text)  # an object is there when it is whole


def _refuse_other(out: epath.Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if (there["about"], there["fingerprint"]) == (now["about"], now["fingerprint"]):
        return
    was, asked = there["about"], now["about"]
    differences = [
        f"{name} was {was.get(name)!r} and is {asked.get(name)!r}"
        for name in sorted({*was, *asked})
        if was.get(name) != asked.get(name)
    ]
    told = "; ".join(differences) or "its inputs, or their places, have changed"
    raise UserError(
        f"{out} holds another data set ({told}): give --out a free folder, or go on with what it "
        "was begun with"
    )

"""Records out of upstream's layout."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from etils import epath

from data.codec import Record
from data.schema import Schema
from data.shards import Mended, Shard, Skipped
from data.upstream import index, layout
from data.upstream.index import Index
from data.upstream.layout import BadItem
from data.upstream.records import Roots, make
from fmv2.errors import UserError
from fmv2.tokens import Tokens

SHARD_ITEMS = 512
"""Items of a shard, on average: about 100 MiB at 512²."""

_REPEATED = "its image is an earlier item's too: keep one of them"
_MEND = "mend it, or leave such items out with --on-error skip"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upstream:
    """A `data.shards.Source`; see the package for what it reads."""

    json: epath.Path
    roots: Roots
    tokenizer: Path
    """The folder of the tokenizer that token_indices were made with."""
    size: int = 512
    """Pixels of the stored image's short side, at most."""
    validation: float = 0.01
    """The part of the items that goes to the split `validation`."""
    on_error: Literal["stop", "skip"] = "stop"

    @property
    def schema(self) -> Schema:
        return Schema()

    @property
    def metadata(self) -> Mapping[str, Any]:
        return {
            "source": "upstream",
            "tokenizer": self._tokens.fingerprint,
            "json": self._index.sha256,
            "size": self.size,
            "validation": self.validation,
        }

    def fingerprint(self) -> str:
        """Of the JSON, the folders' names and the settings.

        The files in the folders are not read for it. Nor does `on_error` count: a run that stopped
        may go on with "skip".
        """
        decides = [dict(self.metadata), [str(root) for root in self.roots]]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()

    def shards(self) -> Sequence[Shard]:
        """Split, shard and place of an item follow from its key's hash alone."""
        choice, place = self._index.hashes.T
        chosen = choice * 2.0**-64 < self.validation
        shards = []
        for split, members in (("train", ~chosen), ("validation", chosen)):
            items = np.flatnonzero(members)
            items = items[np.argsort(place[items], kind="stable")]
            of = -(-len(items) // SHARD_ITEMS)
            numbers = place[items] % np.uint64(max(of, 1))
            shards += [Shard(split, n, of, items[numbers == n].tolist()) for n in range(of)]
        return shards

    def records(self, items: Sequence[int]) -> Iterator[Record | Skipped | Mended]:
        for number, content in zip(items, self._index.read(items), strict=True):
            key = index.key_of(number, content)
            try:
                if self._repeated[number]:
                    raise BadItem(_REPEATED)
                item = layout.parse(number, content)
                record, mended = make(item, self.roots, self._tokens, self.size)
            except BadItem as error:
                if self.on_error == "stop":
                    raise UserError(f"item {number} ({key}): {error}: {_MEND}") from error
                yield Skipped(f"{number} ({key})", str(error))
            else:
                yield from (Mended(kind, times) for kind, times in mended.items())
                yield record

    def problems(self, done: Callable[[int], None]) -> Iterator[tuple[str, str]]:
        """Everything that is wrong with any item and seen without opening its pictures.

        Args:
          done: told how many items have been looked at.
        Yields:
          item and problem, as `Skipped` has them.
        """
        numbered = enumerate(located.content for located in index.scan(self.json))
        with ThreadPoolExecutor(16) as pool:  # for storage that is far away
            while batch := list(itertools.islice(numbered, 1024)):
                for (number, content), found in zip(
                    batch, pool.map(self._check, batch), strict=True
                ):
                    name = f"{number} ({index.key_of(number, content)})"
                    yield from ((name, problem) for problem in found)
                done(batch[-1][0] + 1)

    def __len__(self) -> int:
        """Items in the JSON."""
        return len(self._index.bounds)

    def _check(self, numbered: tuple[int, Mapping[str, Any]]) -> Sequence[str]:
        number, content = numbered
        if self._repeated[number]:
            return [_REPEATED]
        try:
            item = layout.parse(number, content)
        except BadItem as error:
            return error.problems
        return [f"{path} is missing" for path in self.roots.files(item) if not path.exists()]

    @functools.cached_property
    def _tokens(self) -> Tokens:
        return Tokens.load(self.tokenizer)

    @functools.cached_property
    def _index(self) -> Index:
        return index.build(self.json)

    @functools.cached_property
    def _repeated(self) -> np.ndarray:
        return self._index.repeated

    def __getstate__(self) -> dict[str, Any]:
        """Without what a worker makes for itself."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

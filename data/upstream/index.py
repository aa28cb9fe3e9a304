"""Where each item of a JSON list lies in its file, however long the list is.

The file is read in pieces and never held as a whole, here or in a worker: a million items take
some tens of megabytes.
"""

import array
import codecs
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
from etils import epath

from fmv2.errors import UserError

_PIECE = 2**20
_LONGEST = 2**24
"""Bytes of one item: past this, the fault is in the JSON."""

_SPACE = re.compile(r"[ \t\r\n]*")


class Located(NamedTuple):
    """One item of the list."""

    start: int
    end: int
    """Bytes in the file."""
    content: Mapping[str, Any]


class Repeated(dict):
    """A JSON object in which a name came twice; the last of them won."""


class Index(NamedTuple):
    """Of n items."""

    path: epath.Path
    sha256: str
    """Of the file."""
    bounds: np.ndarray
    """(n, 2) int64: start and end of each item in the file."""
    hashes: np.ndarray
    """(n, 2) uint64, of each item's key: evenly spread, and equal for equal keys alone."""

    @property
    def repeated(self) -> np.ndarray:
        """(n,) bool: an earlier item has the same key."""
        first = np.unique(self.hashes, axis=0, return_index=True)[1]
        repeated = np.ones(len(self.hashes), bool)
        repeated[first] = False
        return repeated

    def read(self, numbers: Sequence[int]) -> Iterator[Mapping[str, Any]]:
        """These items, in the order asked for."""
        with self.path.open("rb") as file:
            for number in numbers:
                start, end = (int(bound) for bound in self.bounds[number])
                file.seek(start)
                yield _DECODER.decode(file.read(end - start).decode())


def key_of(number: int, content: Mapping[str, Any]) -> str:
    """The item's own name, its picture's path; its number where it has none."""
    image = content.get("image")
    return image if isinstance(image, str) and image else f"item {number}"


def build(path: epath.Path) -> Index:
    """Reads the whole file once.

    Raises:
      UserError: it is missing, not UTF-8, or not a JSON list of objects.
    """
    bounds = array.array("q")
    hashes = bytearray()
    digest = hashlib.sha256()
    for number, item in enumerate(scan(path, digest)):
        bounds.extend((item.start, item.end))
        key = key_of(number, item.content).encode(errors="surrogatepass")
        hashes += hashlib.blake2b(key, digest_size=16).digest()
    if not bounds:
        raise UserError(f"{path}: the list is empty: there is nothing to build")
    return Index(
        path,
        digest.hexdigest(),
        np.frombuffer(bounds, np.int64).reshape(-1, 2),
        np.frombuffer(bytes(hashes), "<u8").reshape(-1, 2),
    )


def scan(path: epath.Path, digest: Any = None) -> Iterator[Located]:
    """The items of the list, one after another.

    Args:
      digest: of hashlib; updated with every byte of the file.
    Raises:
      UserError: see `build`.
    """
    try:
        with path.open("rb") as file:
            yield from _Text(path, file, digest).items()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


class _Text:
    """A window of a file's text, and the byte that its current character begins at."""

    def __init__(self, path: epath.Path, file: IO[bytes], digest: Any):
        self._path, self._file, self._digest = path, file, digest
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self._byte, self._read, self._count = "", 0, 0, 0, 0

    def items(self) -> Iterator[Located]:
        if self._next() == "\ufeff":
            self._advance(self._at + 1)
        self._expect("[")
        if self._next() == "]":
            self._advance(self._at + 1)
        else:
            yield self._item()
            while self._expect(",]") == ",":
                yield self._item()
        if self._next():
            raise self._fault("more text after the list: expected one JSON list")

    def _item(self) -> Located:
        if self._next() != "{":
            raise self._fault("expected an object in braces, one per picture")
        while True:
            try:
                content, end = _DECODER.raw_decode(self._text, self._at)
                break
            except json.JSONDecodeError as error:  # or the window is too short
                if len(self._text) - self._at > _LONGEST or not self._more():
                    raise self._fault(error.msg) from error
            except RecursionError:
                raise self._fault("nested too deeply") from None
        start = self._byte
        self._advance(end)
        self._count += 1
        return Located(start, self._byte, content)

    def _expect(self, characters: str) -> str:
        found = self._next()
        if not found or found not in characters:
            raise self._fault(f"expected {' or '.join(characters)}, got {found or 'the end'}")
        self._advance(self._at + 1)
        return found

    def _next(self) -> str:
        """The next character that is no space, or nothing at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None  # it matches nothing, too
            self._advance(space.end())
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _advance(self, to: int) -> None:
        self._byte += len(self._text[self._at : to].encode())
        self._at = to

    def _more(self) -> bool:
        piece = self._file.read(_PIECE)
        if self._digest is not None:
            self._digest.update(piece)
        try:
            decoded = self._decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self._path}: not UTF-8 in item {self._count} or soon after it (near byte "
                f"{self._read + error.start}): save the file as UTF-8"
            ) from error
        self._read += len(piece)
        self._text, self._at = self._text[self._at :] + decoded, 0
        return bool(piece)

    def _fault(self, what: str) -> UserError:
        where = f"item {self._count}, byte {self._byte}"
        return UserError(f"{self._path}: not a JSON list of objects: {where}: {what}")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    return content if len(content) == len(pairs) else Repeated(content)


_DECODER = json.JSONDecoder(object_pairs_hook=_object)

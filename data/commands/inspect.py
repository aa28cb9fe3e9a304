"""`fmv2 data inspect`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from data import console, contact_sheet, statistics
from data.dataset import Dataset, open_dataset
from data.schema import CAPTION_KINDS
from data.statistics import Spread, Statistics
from fmv2.errors import UserError
from fmv2.tokens import EMBEDDED, Tokens

_MOST = 1000
"""Records that statistics look at: a large data set would take hours."""


def inspect(
    folder: Positional[str],
    /,
    *,
    split: str = "train",
    tokenizer: Path | None = None,
    png: Path | None = None,
    count: int = 8,
) -> None:
    """Say what a data set holds, and draw some of it: masks on pictures, phrases in their colours.

    Args:
      folder: the data set, local or gs://.
      split: whose records are looked at.
      tokenizer: the folder of the one that it was built with; only needed for another than the
        embedded default's own, to count tokens and to draw.
      png: file for a picture of some records; it must not exist.
      count: records on that picture, evenly over the split.
    """
    dataset = open_dataset(folder)
    records = dataset.source(split)
    tokens, named = _tokenizer(dataset, tokenizer)
    _check(png, count, dataset, tokens)

    out = Console()
    origin = dataset.metadata.get("source", "unknown origin")
    out.print(f"{dataset.path}: {origin}", highlight=False, markup=False, soft_wrap=True)
    out.print(_schema(dataset))
    out.print(_table(("split", "records"), [(k, f"{n:,}") for k, n in dataset.splits.items()]))
    out.print(
        f"tokenizer {dataset.tokenizer}: {named}", highlight=False, markup=False, soft_wrap=True
    )

    numbers = statistics.sample(len(records), _MOST)
    survey = statistics.Survey(dataset, tokens)
    with console.bar("reading", len(numbers)) as update:
        for done, number in enumerate(numbers):
            record = records[number]
            try:
                survey.add(record)
            except ValueError as error:
                raise records.fault(number, record["key"], error) from error
            update(done + 1)
    for part in _about(split, len(records), survey.result()):
        out.print(part, highlight=False)
    if png is not None and tokens is not None:
        shown = statistics.sample(len(records), count)
        contact_sheet.save(contact_sheet.draw(records, shown, tokens), png)
        out.print(f"{png}: {len(shown)} records", highlight=False, markup=False, soft_wrap=True)


def _tokenizer(dataset: Dataset, folder: Path | None) -> tuple[Tokens | None, str]:
    """The data set's own, where it is at hand, and what to say of it."""
    if folder is not None:
        tokens = Tokens.load(folder)
        dataset.check_tokenizer(tokens)
        return tokens, str(folder)
    embedded = Tokens.load(EMBEDDED)
    if embedded.fingerprint == dataset.tokenizer:
        return embedded, "the embedded default's"
    return None, "not the embedded default's; name its folder with --tokenizer to count tokens"


def _check(png: Path | None, count: int, dataset: Dataset, tokens: Tokens | None) -> None:
    """All that would stop the drawing, before hours of reading."""
    if png is None:
        return
    faults = []
    if count < 1:
        faults.append(f"--count is {count}: expected 1 or more")
    if png.exists():
        faults.append(f"--png {png} is there already: delete it or name another file")
    elif not png.parent.is_dir():
        faults.append(f"--png {png}: there is no folder {png.parent}: make it or name another")
    if tokens is None:
        faults.append(
            f"--png needs the tokenizer {dataset.tokenizer} to find the phrases again: name its"
            " folder with --tokenizer"
        )
    if faults:
        raise UserError("; ".join(faults))


def _schema(dataset: Dataset) -> Table:
    rows = [
        (name, field.form, _shape(field.shape), field.dtype, field.meaning)
        for name, field in dataset.schema.fields().items()
    ]
    rows += [
        (
            f"factors/{factor.name}",
            "array",
            "one",
            factor.dtype,
            "one of " + ", ".join(factor.classes) if factor.classes else "an exact cause",
        )
        for factor in dataset.schema.factors
    ]
    return _table(("field", "form", "shape", "type", "meaning"), rows)


def _shape(shape: Sequence[int | None]) -> str:
    return "×".join("any" if side is None else str(side) for side in shape) or "one"


def _about(split: str, length: int, found: Statistics) -> Iterator[Any]:
    all_of_them = found.records == length
    read = f"all {length:,}" if all_of_them else f"{found.records:,} of {length:,}"
    yield f"\nsplit {split}, {read} records read"
    sizes = ", ".join(f"{size} ({n})" for size, n in found.sizes.most_common(5))
    others = len(found.sizes) - 5
    yield f"pictures of {sizes}" + (f" and {others} other sizes" if others > 0 else "")
    if found.without_landmarks:
        yield f"{found.without_landmarks} records without landmarks"
    rows = [
        (title, *(str(value(found.captions[kind])) for kind in CAPTION_KINDS))
        for title, value in (
            ("captions", lambda c: c.captions),
            ("distinct", lambda c: c.distinct),
            ("empty", lambda c: c.empty),
            ("tokens", lambda c: _spread(c.tokens)),
            ("masks per caption", lambda c: _spread(c.masks)),
            ("part of the picture", lambda c: _spread(c.areas, percent=True)),
            ("masks without a pixel", lambda c: c.blank),
            ("masks whose phrase was cut off", lambda c: c.cut),
            ("common words", lambda c: ", ".join(f"{w} {n}" for w, n in c.words.most_common(20))),
        )
    ]
    yield _table(("captions", *CAPTION_KINDS), rows)
    yield "spreads: least, 5 %, median, 95 %, most"
    if found.classes:
        rows = [
            (name, ", ".join(f"{label} {n}" for label, n in counts.items()))
            for name, counts in found.classes.items()
        ]
        yield _table(("factor", "records of each class"), rows)
    if found.numbers:
        rows = [(name, _spread(spread)) for name, spread in found.numbers.items()]
        yield _table(("factor", "spread"), rows)


def _spread(spread: Spread | None, *, percent: bool = False) -> str:
    if spread is None:
        return "not known"
    return ", ".join(f"{100 * n:.1f} %" if percent else f"{n:.4g}" for n in spread)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    return table

"""The embedded default's tokenizer, trained on the captions of the procedural world.

    python -m data.procedural.vocabulary OUT

writes the files of a Stable Diffusion's `tokenizer` folder, always the same. Those of this
project's own are in `fmv2.tokens.EMBEDDED`; where the grammar has gained words, they are to be
written anew, and what was trained with the old ones is to be trained again.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from tyro.conf import Positional

from data.procedural.factors import CLASSES, EMOTIONS, EXPRESSION
from data.procedural.words import attribute_caption, emotion_caption
from data.schema import TOKENS
from fmv2.errors import UserError

LETTERS = sorted(ByteLevel.alphabet())
"""A character for each byte."""

_PICTURES = 4000  # every word of the grammar is in their captions
_MOST = 10_000  # tokens: words are whole long before
_WORD_END = "</w>"
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def write(out: Positional[Path], /) -> None:
    """Train the tokenizer and write its folder.

    Args:
      out: the folder, which must not exist.
    Raises:
      UserError: it exists, or there is no folder to make it in.
    """
    if out.exists():
        raise UserError(f"{out} is there already: delete it or name another folder")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}: make it or name another")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.absolute().parent) as scratch:
        folder = Path(scratch) / out.name
        save(_merges(), folder)
        folder.rename(out)


def save(merges: Sequence[tuple[str, str]], folder: Path) -> None:
    """The files of the tokenizer that has these merges, its tokens in CLIP's order: bytes, bytes
    that end a word, what merges make, the special ones."""
    from transformers import CLIPTokenizer  # takes a second

    merged = [first + second for first, second in merges]
    tokens = [*LETTERS, *(letter + _WORD_END for letter in LETTERS), *merged, *_SPECIAL]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    pairs: Any = list(merges)  # its annotation does not know pairs
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    # What older readers want, and transformers 5 no longer writes.
    tokenizer.backend_tokenizer.model.save(str(folder))
    special = json.dumps(tokenizer.special_tokens_map, indent=2, sort_keys=True)
    (folder / "special_tokens_map.json").write_text(special + "\n")


def _merges() -> list[tuple[str, str]]:
    """Of the captions' words, until each is one token."""
    from transformers import CLIPTokenizer

    form = CLIPTokenizer().backend_tokenizer
    trained = Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
    trained.normalizer, trained.pre_tokenizer = form.normalizer, form.pre_tokenizer
    trained.train_from_iterator(
        _captions(),
        trainers.BpeTrainer(
            vocab_size=_MOST,
            end_of_word_suffix=_WORD_END,
            initial_alphabet=LETTERS,
            show_progress=False,
        ),
    )
    return [(first, second) for first, second in json.loads(trained.to_str())["model"]["merges"]]


def _captions() -> Iterator[str]:
    """Of pictures that have every class and every expression alike often."""
    rng = np.random.Generator(np.random.PCG64(0))
    for number in range(_PICTURES):
        classes = {name: labels[int(rng.integers(len(labels)))] for name, labels in CLASSES.items()}
        strengths = rng.random(len(EXPRESSION)) * (rng.random(len(EXPRESSION)) < 0.3)
        expression: dict[str, float] = dict(zip(EXPRESSION, strengths.tolist(), strict=True))
        yield attribute_caption(classes, rng).text
        yield emotion_caption(EMOTIONS[number % len(EMOTIONS)], expression, classes, rng).text


if __name__ == "__main__":
    try:
        tyro.cli(write)
    except UserError as error:
        sys.exit(f"{error}")

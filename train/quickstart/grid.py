"""The quickstart's picture: one row for each person."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from data.drawing import fit, glowing, left, page, top, words, write_words
from data.procedural.prompts import Prompt
from fmv2.tokens import Tokens

COLUMNS = (
    "reference",
    "its shading",
    "target shading",
    "base model",
    "ours, JAX",
    "ours, PyTorch",
    "attention",
    "true picture",
)


def grid(
    columns: Mapping[str, UInt8[np.ndarray, "n s s 3"]],
    attention: Sequence[Float[np.ndarray, "k g g"]],
    prompts: Sequence[Prompt],
    tokens: Tokens,
) -> Image.Image:
    """A page.

    Args:
      columns: pictures by COLUMNS, but for `attention`.
      attention: where each phrase of a prompt looks, the largest of each map 1; laid over ours.
      prompts: their phrases are in the colours of their maps.
      tokens: that the prompts were read with.
    """
    made = page(COLUMNS, len(prompts))
    pen = ImageDraw.Draw(made)
    for row, prompt in enumerate(prompts):
        for column, name in enumerate(COLUMNS):
            if name == "attention":
                tile = glowing(fit(columns["ours, JAX"][row])[0], attention[row])
            else:
                tile = fit(columns[name][row])[0]
            made.paste(Image.fromarray(tile), (left(column), top(row)))
        text, phrases = prompt.worded
        spans = tokens.phrases(text, [(phrase.start, phrase.end) for phrase in phrases])
        found = words(text, tokens, spans)
        write_words(pen, found, left(len(COLUMNS)), top(row), top(row + 1))
    return made

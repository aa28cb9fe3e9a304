"""CLIP's manners: 77 ids, and the positions of each phrase."""

import json
import pickle

import numpy as np
import pytest

from fmv2.errors import UserError
from fmv2.tokens import EMBEDDED, TOKENS, Tokens
from tests.data.upstream.layouts import write_tokenizer


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A token for each letter: long captions are cut off."""
    return Tokens.load(write_tokenizer(tmp_path_factory.mktemp("letters")))


@pytest.fixture(scope="module")
def words():
    return Tokens.load(EMBEDDED)


def test_a_text_is_framed_and_filled(words):
    ids = words.ids("a red hat")
    assert ids.dtype == np.int32
    red, hat = words.single("red"), words.single("hat")
    np.testing.assert_array_equal(ids[:5], [words.start, words.single("a"), red, hat, words.end])
    np.testing.assert_array_equal(ids[5:], np.full(TOKENS - 5, words.pad))
    np.testing.assert_array_equal(words.ids("")[:3], [words.start, words.end, words.pad])
    np.testing.assert_array_equal(ids, words.ids("  A red\n HAT "))
    assert (words.length("a red hat"), words.length("")) == (5, 2)
    assert words.words(ids) == "a red hat"


def test_a_long_text_ends_in_time(letters):
    ids = letters.ids("abc" * 40)
    assert (ids[0], ids[-1]) == (letters.start, letters.end)
    assert letters.words(ids) == ("abc" * 40)[:75]
    assert letters.length("abc" * 40) == 122


def test_ids_are_transformers_own(words):
    from transformers import CLIPTokenizer

    own = CLIPTokenizer.from_pretrained(EMBEDDED)
    for text in ("a person with brown hair", "", "xylophone 🙂", "hat " * 90):
        wanted = own(text, padding="max_length", truncation=True, max_length=TOKENS)["input_ids"]
        np.testing.assert_array_equal(words.ids(text), wanted)


@pytest.mark.parametrize("which", ["letters", "words"])
@pytest.mark.parametrize("text", ["A Red  hat, blue éyes🙂 on", "a ﬁne Red hat of DŽ", "it's red."])
def test_each_span_has_its_own_tokens(request, which, text):
    tokens = request.getfixturevalue(which)
    spans = [(i, j) for i in range(len(text)) for j in range(i + 1, len(text) + 1)]
    ids = tokens.ids(text)
    for (start, end), mask in zip(spans, tokens.phrases(text, spans), strict=True):
        wanted = text[start:end]
        if (start and text[start - 1].isalnum()) or (end < len(text) and text[end].isalnum()):
            continue  # not whole words
        found = tokens.words(ids[mask])
        assert "".join(found.split()) == "".join(wanted.lower().split())


def test_a_phrase_that_is_cut_off(letters):
    text = "x" * 70 + " blue hat red"
    spans = [(71, 75), (76, 79), (80, 83)]
    blue, hat, red = letters.phrases(text, spans)
    assert np.flatnonzero(blue).tolist() == [71, 72, 73, 74]
    assert np.flatnonzero(hat).tolist() == [75]  # its "h"; the end token has the last place
    assert not red.any()
    assert letters.phrases(text, []).shape == (0, TOKENS)


def test_single(letters, words):
    assert letters.single("left") is None
    assert words.single("left") not in (None, words.single("right"))


def test_another_filler(tmp_path):
    """Stable Diffusion 2 fills with "!"."""
    write_tokenizer(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = tmp_path / name
        if path.exists():
            path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "!"}))
    tokens = Tokens.load(tmp_path)
    assert tokens.pad == tokens.backend.token_to_id("!") != tokens.end
    assert tokens.ids("a")[2:5].tolist() == [tokens.end, tokens.pad, tokens.pad]


def test_the_fingerprint_is_of_what_decides_the_ids(letters, words, tmp_path):
    same = Tokens.load(write_tokenizer(tmp_path / "same"))
    assert same.fingerprint == letters.fingerprint
    assert letters.fingerprint != words.fingerprint
    for change in ({"pad": 0}, {"start": 0}, {"end": 0}):
        fields = {"backend": words.backend, "start": words.start, "end": words.end}
        other = Tokens(**fields | {"pad": words.pad} | change)
        assert other.fingerprint != words.fingerprint


def test_it_travels(words):
    copy = pickle.loads(pickle.dumps(words))
    assert copy.fingerprint == words.fingerprint
    np.testing.assert_array_equal(copy.ids("red hat"), words.ids("red hat"))


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds neither tokenizer\.json nor vocab\.json: name"):
        Tokens.load(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot be read as CLIP's tokenizer"):
        Tokens.load(tmp_path)

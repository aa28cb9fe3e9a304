"""The embedded tokenizer is the recipe's, and its tokens of a phrase are the phrase."""

import json
import re

import numpy as np
import pytest
from tokenizers import trainers
from transformers import CLIPTokenizer

from data.geometry import flip_words
from data.procedural import vocabulary
from data.sample import sides
from fmv2.errors import UserError
from fmv2.tokens import EMBEDDED, Tokens
from tests.data.procedural.pictures import COUNT, told


@pytest.fixture(scope="module")
def tokens():
    return Tokens.load(EMBEDDED)


@pytest.fixture(scope="module")
def other(tmp_path_factory, tokens):
    """Of the same format, with words in pieces, so that many captions pass 77 tokens."""
    few = CLIPTokenizer.from_pretrained(EMBEDDED).backend_tokenizer
    few.train_from_iterator(
        ["the lazy brown fox jumps over a quick red hat with blue eyes and long hair"] * 9,
        trainers.BpeTrainer(
            vocab_size=560, end_of_word_suffix="</w>", initial_alphabet=vocabulary.LETTERS
        ),
    )
    merges = [tuple(pair) for pair in json.loads(few.to_str())["model"]["merges"]]
    folder = tmp_path_factory.mktemp("other") / "tokenizer"
    vocabulary.save(merges[:60], folder)
    other = Tokens.load(folder)
    assert other.fingerprint != tokens.fingerprint
    return other


def test_the_recipe_writes_the_committed_files(tmp_path):
    vocabulary.write(tmp_path / "tokenizer")
    names = {path.name for path in EMBEDDED.iterdir()}
    assert names == {path.name for path in (tmp_path / "tokenizer").iterdir()}
    # What Stable Diffusion's own folders have.
    assert names >= {
        *("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
    }
    for name in names:
        assert (tmp_path / "tokenizer" / name).read_bytes() == (EMBEDDED / name).read_bytes(), name
    assert list(tmp_path.iterdir()) == [tmp_path / "tokenizer"]
    fingerprint = Tokens.load(tmp_path / "tokenizer").fingerprint
    assert fingerprint == Tokens.load(EMBEDDED).fingerprint


def test_it_never_overwrites(tmp_path):
    with pytest.raises(UserError, match=r"is there already: delete it or name another"):
        vocabulary.write(tmp_path)
    with pytest.raises(UserError, match=r"there is no folder .*nowhere: make it"):
        vocabulary.write(tmp_path / "nowhere" / "tokenizer")
    assert not list(tmp_path.iterdir())


def test_older_readers_find_the_same(tokens, tmp_path):
    """From vocab.json and merges.txt alone, which is all that Stable Diffusion 1.5 has."""
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_bytes((EMBEDDED / name).read_bytes())
    assert Tokens.load(tmp_path).fingerprint == tokens.fingerprint


def test_every_word_of_the_grammar_is_one_token(tokens):
    words = {
        word
        for picture in told()
        for caption in (picture.attribute_caption, picture.emotion_caption)
        for word in re.findall(r"\w+", caption.text.lower())
    }
    assert len(words) > 250
    assert [word for word in words if tokens.single(word) is None] == []
    assert 1000 < tokens.size < 2000
    # Flips exchange these two, wherever they stand, and nothing else may have them.
    for side in ("left", "right"):
        having = [word for word in words if tokens.single(side) in tokens.ids(word)[1:-1]]
        assert having == [side]


@pytest.mark.parametrize("text", ["Zygomatic arches, 37½ €", "🙂 naïve  日本\tthe", "it's", "\x00"])
def test_any_text_has_tokens_and_comes_back(tokens, text):
    assert CLIPTokenizer.from_pretrained(EMBEDDED).unk_token_id == tokens.end
    ids = tokens.ids(text)
    assert tokens.end not in ids[1 : tokens.length(text) - 1]  # which stands for the unknown, too
    assert "".join(tokens.words(ids).split()) == "".join(text.lower().split())


@pytest.mark.parametrize("name", ["tokens", "other"])
def test_the_tokens_of_a_phrase_are_the_phrase(request, name):
    tokens = request.getfixturevalue(name)
    whole = cut = gone = 0
    for picture in told():
        for caption in (picture.attribute_caption, picture.emotion_caption):
            ids = tokens.ids(caption.text)
            spans = [(phrase.start, phrase.end) for phrase in caption.phrases]
            masks = tokens.phrases(caption.text, spans)
            assert masks.sum(0).max() <= 1
            assert not masks[:, np.isin(ids, (tokens.start, tokens.end))].any()
            for (start, end), mask in zip(spans, masks, strict=True):
                phrase, found = caption.text[start:end].lower(), tokens.words(ids[mask])
                if found == phrase:
                    whole += 1
                    continue
                # The caption is cut off: what is left of the phrase is its beginning, and its last
                # token is the caption's last.
                assert tokens.length(caption.text) > 77
                assert phrase.startswith(found)
                assert mask[75] or not mask.any()
                cut += bool(found)
                gone += not found
    assert whole > 2 * COUNT
    if name == "other":
        assert cut > 50
        assert gone > 50


def test_a_flipped_caption_speaks_of_the_other_side(tokens):
    left, right = sides(tokens)
    assert left is not None
    assert right is not None
    other = {"left": "right", "right": "left"}
    flipped = 0
    for picture in told():
        for caption in (picture.attribute_caption, picture.emotion_caption):
            text = " ".join(re.findall(r"\w+|[^\w\s]+", caption.text.lower()))
            wanted = re.sub(r"\b(left|right)\b", lambda word: other[word[0]], text)
            assert tokens.words(flip_words(tokens.ids(text), left, right)) == wanted
            flipped += wanted != text
    assert flipped > 200


def test_captions_seldom_pass_77_tokens(tokens):
    lengths = [
        tokens.length(caption.text)
        for picture in told()
        for caption in (picture.attribute_caption, picture.emotion_caption)
    ]
    assert np.mean(np.array(lengths) > 77) < 0.05

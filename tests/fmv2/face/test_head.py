"""Heads in folders: NumPy's archive, and FLAME's three files."""

import pickle

import jax
import numpy as np
import pytest

from data.procedural.head import make_head
from fmv2.errors import UserError
from fmv2.face.head import FILE, FLAME_FILES, Head, is_head, load_head, save_head
from tests.fmv2.face.test_flame_file import chumpy, fields, head, write

__all__ = ["chumpy"]
TRIANGLES = np.arange(68) % 30


@pytest.fixture
def flame(tmp_path, chumpy, monkeypatch):
    """A folder as users of DECA have it, of a random head."""
    contents = fields(chumpy, head())
    write(tmp_path / "generic_model.pkl", contents)
    write(tmp_path / "FLAME_masks.pkl", {"face": np.arange(15), "neck": np.arange(15, 20)})
    landmarks(tmp_path / "landmark_embedding.npy")
    monkeypatch.undo()
    return tmp_path


def landmarks(path, **other):
    points = np.random.default_rng(0).dirichlet((1, 1, 1), (1, 68)).astype(np.float32)
    found = {"full_lmk_faces_idx": TRIANGLES[None], "full_lmk_bary_coords": points, **other}
    np.save(path, np.array(found, dtype=object), allow_pickle=True)
    return points[0]


def test_the_same_bits_come_back(tmp_path):
    made = make_head()
    whole = Head(made.model, made.surface)
    assert not is_head(tmp_path)
    save_head(whole, tmp_path)
    assert is_head(tmp_path)
    found = load_head(tmp_path)
    assert found.model.parents == whole.model.parents
    for expected, got in zip(jax.tree.leaves(whole), jax.tree.leaves(found), strict=True):
        assert expected.dtype == got.dtype
        assert np.asarray(expected).tobytes() == np.asarray(got).tobytes()


def test_flames_own_files(flame):
    assert is_head(flame)
    found, model = load_head(flame), head()
    faces = np.asarray(model.faces)
    assert np.array_equal(found.surface.faces, faces[(faces < 15).all(axis=1)])
    assert np.array_equal(found.surface.landmark_corners, faces[TRIANGLES])
    points = landmarks(flame / "again.npy")
    assert np.array_equal(found.surface.landmark_barycentrics, points)


def break_archive(path):
    (path / FILE).write_bytes(b"PK no archive")


def pickle_in_archive(path):
    np.savez(path / FILE, a=np.array({}, dtype=object))


def other_archive(path):
    np.savez(path / FILE, a=np.zeros(3))


def no_landmarks(path):
    (path / FLAME_FILES[2]).unlink()


def no_face(path):
    (path / FLAME_FILES[1]).write_bytes(pickle.dumps({"neck": np.arange(3)}))


def other_head(path):
    landmarks(path / FLAME_FILES[2], full_lmk_faces_idx=TRIANGLES[None] + 10**6)


def few_landmarks(path):
    landmarks(path / FLAME_FILES[2], full_lmk_faces_idx=TRIANGLES[None, :51])


def no_npy(path):
    (path / FLAME_FILES[2]).write_bytes(pickle.dumps({}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_archive, "head.npz: truncated, corrupt"),
        (pickle_in_archive, "head.npz: no head: model.v_template"),
        (other_archive, "head.npz: no head"),
        (no_landmarks, "needs landmark_embedding.npy too"),
        (no_face, "no region face, only neck"),
        (other_head, "names triangle 10000"),
        (few_landmarks, r"full_lmk_faces_idx is \(1, 51\), expected \(1, 68\)"),
        (no_npy, "landmark_embedding.npy: truncated, corrupt"),
    ],
)
def test_refusals(flame, spoil, message):
    spoil(flame)
    with pytest.raises(UserError, match=message):
        load_head(flame)

"""Reading FLAME's files, written here in their own format by a stand-in for chumpy."""

import pickle
import sys
import types

import numpy as np
import pytest
import scipy.sparse

from fmv2.errors import UserError
from fmv2.face.flame import skin
from fmv2.face.flame_file import load_flame, load_flame_masks
from tests.fmv2.face.geometry import random_head
from tests.fmv2.face.test_flame import coefficients, reference


@pytest.fixture
def chumpy(monkeypatch):
    """`chumpy.ch.Ch` and others, for writing; gone again before the file is read."""
    for name in ("chumpy", "chumpy.ch", "chumpy.reordering"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def make(origin, **state):
        module, name = origin.rsplit(".", 1)
        stand_in = sys.modules[module]
        if not hasattr(stand_in, name):
            setattr(stand_in, name, type(name, (), {"__module__": module}))
        made = getattr(stand_in, name)()
        vars(made).update(state)
        return made

    return make


def fields(make, model):
    """A FLAME file's contents: chumpy objects with their bookkeeping, arrays, a sparse matrix."""

    def ch(array):
        return make("chumpy.ch.Ch", x=np.float64(array), _dirty_vars=set(), _status="new")

    parents = np.array([2**32 - 1, *model.parents[1:]], np.uint32)
    return {
        "v_template": ch(model.v_template),
        "shapedirs": ch(model.shapedirs),
        "posedirs": np.float64(model.posedirs),
        "J_regressor": scipy.sparse.csc_matrix(np.float64(model.J_regressor)),
        "kintree_table": np.stack([parents, np.arange(5, dtype=np.uint32)]),
        "weights": ch(model.weights),
        "f": np.asarray(model.faces, np.uint32),
        "bs_style": "lbs",
        "J": make("chumpy.ch.MatVecMult", whatever=1),  # never read, so it may be anything inert
    }


def head():
    return random_head(0, vertices=20, identities=300, expressions=100)


def write(path, contents, protocol=2):
    path.write_bytes(pickle.dumps(contents, protocol))
    return path


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_head_comes_back_as_it_was_written(tmp_path, chumpy, monkeypatch, protocol):
    model = head()
    path = write(tmp_path / "generic_model.pkl", fields(chumpy, model), protocol)
    monkeypatch.undo()
    assert "chumpy" not in sys.modules
    read = load_flame(path)
    for name in ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "faces"):
        np.testing.assert_array_equal(getattr(read, name), getattr(model, name))
    assert read.parents == (-1, 0, 1, 1, 1)
    assert read.expression_offset == 300
    shape, expression, pose = coefficients(0, identities=100, expressions=50)
    given = (0.1 * shape, 0.1 * expression, pose)
    np.testing.assert_allclose(skin(read, *given), reference(model, *given), rtol=0, atol=1e-5)


def test_scipys_former_module_and_chumpys_selection_are_read(tmp_path, chumpy):
    model = head()
    contents = fields(chumpy, model)
    flat = np.float64(model.v_template).ravel()
    order = np.random.default_rng(0).permutation(flat.size)
    contents["v_template"] = chumpy(
        "chumpy.reordering.Select",
        a=chumpy("chumpy.ch.Ch", x=flat[np.argsort(order)]),
        idxs=order,
        preferred_shape=(20, 3),
    )
    path = write(tmp_path / "model.pkl", contents)
    raw = path.read_bytes()
    assert b"scipy.sparse._csc\n" in raw
    assert b"numpy._core.multiarray\n" in raw
    raw = raw.replace(b"scipy.sparse._csc\n", b"scipy.sparse.csc\n")
    path.write_bytes(raw.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))
    read = load_flame(path)
    np.testing.assert_array_equal(read.v_template, model.v_template[...])
    np.testing.assert_array_equal(read.J_regressor, model.J_regressor)


def test_masks_come_back_as_they_were_written(tmp_path):
    masks = {"face": np.array([3, 1, 4]), "left_eyeball": np.array([], np.int64), "nose": [5, 9]}
    read = load_flame_masks(write(tmp_path / "FLAME_masks.pkl", masks))
    assert {name: mask.tolist() for name, mask in read.items()} == {
        "face": [3, 1, 4],
        "left_eyeball": [],
        "nose": [5, 9],
    }
    assert all(mask.dtype == np.int32 for mask in read.values())


class _Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ((exec, "raise SystemExit"), "builtins.exec|__builtin__.exec"),
        ((getattr, "", "upper"), "__builtin__.getattr"),
        ((np.load, "x"), "numpy.load"),
        ((scipy.sparse.coo_matrix, (2, 2)), "coo_matrix"),
    ],
)
def test_foreign_names_are_refused(tmp_path, call, name):
    path = write(tmp_path / "bad.pkl", {"v_template": _Runs(*call)})
    for load in (load_flame, load_flame_masks):
        with pytest.raises(UserError, match=rf"bad\.pkl: refused: the pickle asks for .*({name})"):
            load(path)


def test_bytes_pass_through_latin1_alone(tmp_path):
    # zlib and bz2 are codecs too: a small file could ask for any amount of memory.
    import _codecs

    path = write(tmp_path / "bad.pkl", {"f": _Runs(_codecs.encode, "a", "utf-8")})
    with pytest.raises(UserError, match="corrupt or not a pickle: bytes encoded as 'utf-8'"):
        load_flame(path)


def test_all_faults_in_one_error(tmp_path, chumpy):
    contents = fields(chumpy, head())
    del contents["posedirs"]
    contents["v_template"] = np.full((20, 3), np.nan)
    contents["shapedirs"] = np.zeros((20, 3, 10))
    contents["weights"] = chumpy("chumpy.ch.MatVecMult")
    contents["J_regressor"] = np.zeros((5, 19))
    contents["f"] = np.zeros((4, 3))
    contents["kintree_table"] = "tree"
    path = write(tmp_path / "model.pkl", contents)
    with pytest.raises(UserError) as caught:
        load_flame(path)
    for fault in (
        "model.pkl: not a FLAME model",
        "posedirs is missing",
        "v_template holds 60 values that are not finite",
        "shapedirs is (20, 3, 10), expected (20, 3, 400)",
        "weights cannot be read: it is a chumpy.ch.MatVecMult, expected an array",
        "J_regressor is (5, 19), expected (5, 20)",
        "f is float64, expected whole numbers",
        "kintree_table cannot be read: it is a str, expected an array",
    ):
        assert fault in str(caught.value)


def test_links_that_lead_nowhere_are_refused(tmp_path, chumpy):
    contents = fields(chumpy, head())
    contents["f"] = np.array([[0, 1, 20]])
    contents["kintree_table"] = np.array([[-1, 0, 3, 1, 1], [0, 1, 2, 3, 4]])
    path = write(tmp_path / "model.pkl", contents)
    with pytest.raises(
        UserError, match=r"f names vertices 0 to 20, of 20; kintree.*\[0, 3, 1, 1\]"
    ):
        load_flame(path)


def test_masks_that_are_not_lists_of_vertices_are_refused(tmp_path):
    masks = {
        "face": np.zeros((2, 2), int),
        "nose": np.array([0.5]),
        "ear": np.array([-1]),
        "lip": 3,
    }
    path = write(tmp_path / "masks.pkl", masks)
    with pytest.raises(UserError, match=r"lip cannot be .*face is int64.*nose is float64.*ear is"):
        load_flame_masks(path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "truncated, corrupt or not a pickle"),
        (b"PK\x03\x04 a zip file", "truncated, corrupt or not a pickle"),
        (pickle.dumps({"f": np.zeros(9)}, 2)[:-20], "truncated, corrupt or not a pickle"),
        (pickle.dumps([1, 2], 2), "holds a list, expected named arrays"),
        (pickle.dumps({1: 2}, 2), "expected named arrays"),
        (None, "cannot be read: No such file"),
    ],
)
def test_files_that_are_no_pickle_of_arrays(tmp_path, raw, message):
    path = tmp_path / "model.pkl"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(UserError, match=rf"model\.pkl: .*{message}"):
        load_flame(path)

"""Tensors come out of every form of file as they went in, and bad files are refused in one line."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from convert.sources import open_file, open_folder, open_sharded
from fmv2.errors import UserError

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_)


def arrays():
    rng = np.random.default_rng(0)
    return {f"part.{i}": (rng.random((3, 4)) * 9).astype(dtype) for i, dtype in enumerate(DTYPES)}


def check(tensors, expected):
    assert set(tensors) == set(expected)
    for name, ref in tensors.items():
        array = ref.read()
        assert (
            (ref.shape, ref.dtype)
            == (array.shape, array.dtype)
            == (expected[name].shape, expected[name].dtype)
        )
        assert array.tobytes() == expected[name].tobytes()


def as_torch(array):
    flat = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return flat.view(getattr(torch, array.dtype.name)).reshape(array.shape)


def test_safetensors(tmp_path):
    save_file(arrays(), tmp_path / "x.bin")  # the name says nothing
    check(open_file(tmp_path / "x.bin"), arrays())


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles(tmp_path, zipped):
    nested = {"part": {str(i): as_torch(a) for i, a in enumerate(arrays().values())}}
    torch.save(nested, tmp_path / "x", _use_new_zipfile_serialization=zipped)
    check(open_file(tmp_path / "x"), arrays())


@pytest.mark.parametrize("zipped", [True, False])
def test_views_of_a_storage(tmp_path, zipped):
    whole = torch.arange(24.0).reshape(4, 6)
    views = {
        "turned": whole.T,
        "rows": whole[1:3],
        "columns": whole[:, 2:4],
        "none": whole[:0],
        "one": whole[2, 3],
    }
    torch.save(views, tmp_path / "x", _use_new_zipfile_serialization=zipped)
    check(open_file(tmp_path / "x"), {name: view.numpy() for name, view in views.items()})


def test_parameters_are_tensors(tmp_path):
    torch.save({"w": torch.nn.Parameter(torch.ones(2))}, tmp_path / "x")
    check(open_file(tmp_path / "x"), {"w": np.ones(2, np.float32)})


def shards(folder: Path, index: str) -> dict:
    (one, two) = {"a": np.zeros(2)}, {"b": np.ones(3)}
    save_file(one, folder / "s-1.safetensors")
    save_file(two, folder / "s-2.safetensors")
    weight_map = {"a": "s-1.safetensors", "b": "s-2.safetensors"}
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return one | two


@pytest.mark.parametrize(
    "index", ["model.safetensors.index.json", "model.safetensors.index.fp16.json"]
)
def test_shards(tmp_path, index):
    expected = shards(tmp_path, index)
    check(open_folder(tmp_path), expected)


def test_missing_shards_are_named(tmp_path):
    shards(tmp_path, "model.safetensors.index.json")
    (tmp_path / "s-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"shards \['s-2.safetensors'\] are missing"):
        open_folder(tmp_path)


def test_absent_tensors_of_shards_are_named(tmp_path):
    shards(tmp_path, "index.json")
    save_file({"c": np.zeros(1)}, tmp_path / "s-2.safetensors")
    with pytest.raises(UserError, match=r"the shards lack \['b'\]"):
        open_sharded(tmp_path / "index.json")


def test_safetensors_before_pickles_and_plain_before_variants(tmp_path):
    name = "diffusion_pytorch_model"
    files = {
        f"{name}.fp16.safetensors": 0,
        f"{name}.bin": 1,
        f"{name}.safetensors": 2,
    }
    for n, (file, value) in enumerate(files.items()):
        if file.endswith("bin"):
            torch.save({"w": torch.full((1,), float(value))}, tmp_path / file)
        else:
            save_file({"w": np.full(1, value, np.float32)}, tmp_path / file)
        assert open_folder(tmp_path)["w"].read() == n  # each beats those before it


def test_several_variants_are_refused(tmp_path):
    for variant in ("fp16", "non_ema"):
        save_file({"w": np.zeros(1)}, tmp_path / f"model.{variant}.safetensors")
    with pytest.raises(UserError, match="all variants: leave one"):
        open_folder(tmp_path)


def test_folder_without_weights(tmp_path):
    with pytest.raises(UserError, match="no weights: expected one of"):
        open_folder(tmp_path)


@pytest.mark.parametrize("kept", [4, 60, 150])
def test_truncated_safetensors(tmp_path, kept):
    path = tmp_path / "x.safetensors"
    save_file({"w": np.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        UserError, match=r"x.safetensors: (truncated or corrupt|unknown kind)"
    ) as error:
        open_file(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_pickles(tmp_path, zipped):
    path = tmp_path / "x"
    torch.save({"w": torch.zeros(1000)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match="truncated, corrupt") as error:
        open_file(path)
    assert "\n" not in str(error.value)


class Foreign:
    """A class that no checkpoint should hold."""


class Trap:
    """Runs a program when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_foreign_classes_are_named(tmp_path, zipped):
    torch.save(
        {"w": torch.ones(1), "x": Foreign()}, tmp_path / "x", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(UserError, match=r"foreign classes \['.*Foreign'\]") as error:
        open_file(tmp_path / "x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_foreign_is_run(tmp_path, zipped):
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "x", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="foreign classes"):
        open_file(tmp_path / "x")
    assert not (tmp_path / "sprung").exists()


def test_what_is_no_tensor_is_named(tmp_path):
    torch.save({"epoch": 3, "w": torch.ones(1)}, tmp_path / "x")
    with pytest.raises(UserError, match="epoch is a int, expected tensors"):
        open_file(tmp_path / "x")


def test_pickles_need_torch(tmp_path, monkeypatch):
    torch.save({"w": torch.ones(1)}, tmp_path / "x")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="install torch to read it"):
        open_file(tmp_path / "x")


def test_unknown_form(tmp_path):
    (tmp_path / "x").write_text("just some text")
    with pytest.raises(UserError, match="unknown kind of file"):
        open_file(tmp_path / "x")


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_peak_memory_is_that_of_the_checkpoint(tmp_path, form):
    """Host memory beside the weights stays under 0.3 of the file's size, counting mapped pages."""
    layers, width = 24, 2048  # 24 float32 matrices of 16 MiB: 384 MiB
    weights = {f"layers.{i}.weight": np.full((width, width), i, np.float32) for i in range(layers)}
    path = tmp_path / "x"
    if form == "safetensors":
        save_file(weights, path)
    else:
        torch.save({name: torch.from_numpy(w) for name, w in weights.items()}, path)
    del weights
    script = f"""
        import re
        from pathlib import Path
        import jax, jax.numpy as jnp
        from flax import nnx
        from convert import engine
        from convert.rules import LINEAR, Rule, Table
        from convert.sources import open_file

        class Net(nnx.Module):
            def __init__(self, rngs):
                self.layers = nnx.List([
                    nnx.Linear({width}, {width}, use_bias=False, rngs=rngs) for _ in range({layers})
                ])

        def peak():
            # Not ru_maxrss, which counts what the parent had before this program began.
            status = Path("/proc/self/status").read_text()
            return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])

        net = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
        table = Table((Rule("layers.{{i}}.weight", "layers.{{i}}.kernel", LINEAR),))
        jax.device_put(jnp.ones(1)).block_until_ready()
        {"import torch" if form == "torch" else ""}
        open_file(Path({str(path)!r}))
        before = peak()
        net = engine.load(net, open_file(Path({str(path)!r})), table, name="net")
        assert [int(layer.kernel[0, 0]) for layer in net.layers] == list(range({layers}))
        print((peak() - before) / Path({str(path)!r}).stat().st_size)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
        env={"JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"},
    )
    share = float(run.stdout)
    assert 0.9 < share < 1.3, share

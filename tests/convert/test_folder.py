"""A folder holds the bits it was made from, and is written whole or not at all."""

import dataclasses
import re
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.torch import load_file, save_file

from convert import folder as folders
from convert.components import COMPONENTS
from convert.engine import torch_shapes
from convert.folder import assemble, read, write
from convert.kinds import identify
from convert.verification import compare
from data.procedural.head import make_head
from fmv2.errors import UserError
from fmv2.face.head import Head, save_head
from fmv2.models.abstract import abstract
from fmv2.models.clip_vision import CLIPVisionConfig
from fmv2.models.id_adapter import IdAdapterConfig
from fmv2.models.shadingnet import ShadingNetConfig
from fmv2.models.unet import UNetConfig
from tests.convert.conftest import edit_json

FOLDERS = {**{name: name for name in COMPONENTS}, "adapter": "ip_adapter"}
DTYPES = ("float32", "float16", "bfloat16")


def tensors_of(path, component):
    return {name: ref.read() for name, ref in identify(path).parts[component].tensors.items()}


def same(actual, expected):
    assert set(actual) == set(expected)
    for name, array in actual.items():
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape), name
        assert array.tobytes() == expected[name].tobytes(), name


@pytest.fixture(scope="module", params=DTYPES)
def cast(request, sources, tmp_path_factory):
    """The sources in one dtype, and the folder that became of them."""
    dtype, home = getattr(torch, request.param), tmp_path_factory.mktemp(request.param)

    def to(tree):
        if isinstance(tree, dict):
            return {name: to(child) for name, child in tree.items()}
        return tree.to(dtype) if tree.is_floating_point() else tree

    base = shutil.copytree(sources.base, home / "base")
    clip = shutil.copytree(sources.clip, home / "clip")
    for file in (*base.rglob("*.safetensors"), *clip.rglob("*.safetensors")):
        save_file(to(load_file(file)), file, metadata={"format": "pt"})
    files = {"model.bin": sources.model_bin, "arcface": sources.arcface, "deca": sources.deca}
    for name, path in files.items():
        torch.save(to(torch.load(path, weights_only=True)), home / name)
    paths = (base, clip, *(home / name for name in files))
    write(read(assemble(paths)), home / "out", upstream=True)
    return paths, home / "out", np.dtype(getattr(ml_dtypes, request.param, request.param))


def test_round_trip_is_bit_exact(cast):
    (base, clip, model_bin, arcface, deca), out, dtype = cast
    for component, place in FOLDERS.items():
        source = {
            "image_encoder": clip,
            "face_encoder": arcface,
            "coefficient_encoder": deca,
            "adapter": model_bin,
            "shadingnet": model_bin,
        }.get(component, base / component)
        expected = tensors_of(source, component)
        actual = tensors_of(out / place / COMPONENTS[component].file, component)
        if component == "text_encoder":  # transformers 5 writes no prefix, every version reads one
            expected = {f"text_model.{name}": array for name, array in expected.items()}
        if component in ("face_encoder", "coefficient_encoder"):
            expected = {n: a for n, a in expected.items() if "num_batches_tracked" not in n}
        same(actual, expected)
        assert {array.dtype for array in actual.values()} == {dtype}


def test_model_bin_is_bit_exact(cast):
    (_, _, model_bin, *_), out, _ = cast
    for component in ("adapter", "shadingnet"):
        same(tensors_of(out / "model.bin", component), tensors_of(model_bin, component))
    written = torch.load(out / "model.bin", weights_only=True)
    assert list(written) == ["image_proj", "ip_adapter", "controlnet"]


def test_dtype_of_files(model, tmp_path):
    write(model, tmp_path / "x", dtype=jnp.bfloat16)
    for component, place in FOLDERS.items():
        actual = tensors_of(tmp_path / "x" / place / COMPONENTS[component].file, component)
        assert {array.dtype.name for array in actual.values()} == {"bfloat16"}
    assert "bfloat16" in (tmp_path / "x" / "README.md").read_text()
    assert "float32" not in (tmp_path / "x" / "README.md").read_text()


def test_dtype_on_reading(export):
    model = read(assemble([export]), dtype=jnp.bfloat16)
    for net in model.nets().values():
        assert {leaf[...].dtype for _, leaf in nnx.to_flat_state(nnx.state(net))} == {
            jnp.dtype(jnp.bfloat16)
        }


def test_weights_go_straight_where_they_are_wanted(export):
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    shard, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("fsdp",), ()))

    def place(component, path):
        return shard if (component, path) == ("unet", "mid_block.resnets.0.conv2.bias") else whole

    unet = read(assemble([export]), sharding=place).unet
    assert unet.mid_block.resnets[0].conv2.bias[...].sharding == shard
    assert unet.mid_block.resnets[0].conv1.bias[...].sharding == whole


def test_contents(export):
    found = sorted(str(path.relative_to(export)) for path in export.rglob("*") if path.is_file())
    assert found == [
        "README.md",
        "coefficient_encoder/config.json",
        "coefficient_encoder/model.safetensors",
        "face_encoder/model.safetensors",
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
        "ip_adapter/face-makeup-plusv2.safetensors",
        "model.bin",
        "model_index.json",
        "pipeline.py",
        "pytorch_lora_weights.safetensors",
        "scheduler/scheduler_config.json",
        "shadingnet/config.json",
        "shadingnet/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert len(tensors_of(export / "pytorch_lora_weights.safetensors", "lora")) == 256
    adapter = tensors_of(export / "ip_adapter" / COMPONENTS["adapter"].file, "adapter")
    assert sum(name.startswith("ip_adapter.") for name in adapter) == 288
    assert sum(name.startswith("image_proj.") for name in adapter) == 56
    card = (export / "README.md").read_text()
    for advice in ("shortcut = True", "clip_embeds", "never call `save_pretrained`", "count twice"):
        assert advice in card


def test_stable_diffusion_alone(sources, tmp_path):
    write(read(assemble([sources.base])), tmp_path / "x")
    found = {path.name for path in (tmp_path / "x").iterdir()}
    assert found == {
        "README.md", "model_index.json", "unet", "vae", "text_encoder", "tokenizer", "scheduler",
    }  # fmt: skip
    with pytest.raises(UserError, match="lacks one of them"):
        write(read(assemble([sources.base])), tmp_path / "y", upstream=True)
    assert not (tmp_path / "y").exists()


def test_a_model_in_the_making(model, tmp_path):
    """Nets are added one after another; the folder says itself which it has not yet."""
    some = {"tokenizer": model.tokenizer, "scheduler": model.scheduler}
    write(folders.Model(**some, vae=model.vae, face_encoder=model.face_encoder), tmp_path / "x")
    source = identify(tmp_path / "x")
    assert source.kind == "Stable Diffusion folder without unet, text_encoder"
    assembly = assemble([tmp_path / "x"])
    assert assembly.notes == ("a model in the making, without unet, text_encoder",)
    again = read(assembly)
    assert set(again.nets()) == {"vae", "face_encoder"}
    with pytest.raises(UserError, match="without unet, text_encoder"):
        next(compare(tmp_path / "x"))
    write(dataclasses.replace(model, vae=again.vae), tmp_path / "y")
    assert assemble([tmp_path / "y"]).notes == ()
    # What its index does not call missing is not allowed to be.
    shutil.rmtree(tmp_path / "x" / "vae")
    with pytest.raises(UserError, match="vae/ is missing"):
        identify(tmp_path / "x")


def test_a_head_goes_along(model, sources, tmp_path):
    made = make_head()
    head = Head(made.model, made.surface)
    (tmp_path / "other").mkdir()
    save_head(head, tmp_path / "other")
    found = read(assemble([sources.base, tmp_path / "other"]))
    write(found, tmp_path / "out")
    again = read(assemble([tmp_path / "out"])).head
    assert again is not None
    assert np.array_equal(again.model.shapedirs, head.model.shapedirs)
    assert model.head is None


def test_an_adapter_without_its_unet_is_refused(model, tmp_path):
    write(dataclasses.replace(model, unet=None), tmp_path / "x")
    with pytest.raises(UserError) as error:
        read(assemble([tmp_path / "x"]))
    for name in ("adapter", "shadingnet"):
        assert f"{name}: the U-Net that it belongs to is missing" in str(error.value)


def test_alpha_is_folded_into_the_files(model, export, tmp_path):
    """No file has a place for it."""
    graphdef, state = nnx.split(model.adapter)
    adapter = nnx.merge(graphdef, state)
    adapter.config = dataclasses.replace(adapter.config, alpha=2 * adapter.config.rank)
    write(dataclasses.replace(model, adapter=adapter), tmp_path / "x")
    place = f"ip_adapter/{COMPONENTS['adapter'].file}"
    plain, scaled = (tensors_of(folder / place, "adapter") for folder in (export, tmp_path / "x"))
    for name, array in scaled.items():
        factor = 2 if name.endswith("_lora.up.weight") else 1
        np.testing.assert_array_equal(array, factor * plain[name])


def test_later_sources_replace_earlier_ones(sources, export, tmp_path):
    other = shutil.copytree(sources.base / "vae", tmp_path / "other")
    file = other / "diffusion_pytorch_model.safetensors"
    save_file({name: t + 1 for name, t in load_file(file).items()}, file)
    assembly = assemble([sources.base, other])
    assert assembly.notes == (f"{other}: replaces vae",)
    np.testing.assert_array_equal(
        assembly.parts["vae"].tensors["quant_conv.bias"].read(),
        load_file(file)["quant_conv.bias"].numpy(),
    )


def test_lora_replaces_that_of_its_adapter(sources, export, tmp_path):
    lora = export / "pytorch_lora_weights.safetensors"
    save_file({name: t + 1 for name, t in load_file(lora).items()}, tmp_path / "lora")
    before = assemble([sources.base, sources.model_bin]).parts["adapter"].tensors
    after = assemble([sources.base, sources.model_bin, tmp_path / "lora"]).parts["adapter"].tensors
    for name in before:
        added = 1 if "_lora." in name else 0
        np.testing.assert_array_equal(after[name].read(), before[name].read() + np.float32(added))


def test_faults_of_all_sources_at_once(sources, export, tmp_path):
    tree = torch.load(sources.model_bin, weights_only=True)
    torch.save({**tree, "optimizer": {"step": torch.ones(1)}}, tmp_path / "x")
    with pytest.raises(UserError) as error:
        assemble([export / "pytorch_lora_weights.safetensors", tmp_path / "x"])
    for fault in ("unknown tensors optimizer.step", "a LoRA alone", "no Stable Diffusion folder"):
        assert fault in str(error.value)


def test_faults_of_all_components_at_once(sources, tmp_path):
    """Missing, extra and misshapen tensors and unsupported fields, before any tensor is read."""
    base = shutil.copytree(sources.base, tmp_path / "base")
    unet, vae = (base / name / "diffusion_pytorch_model.safetensors" for name in ("unet", "vae"))
    tensors = load_file(unet)
    del tensors["conv_in.weight"]
    save_file({**tensors, "extra.weight": torch.ones(1)}, unet)
    save_file({**load_file(vae), "quant_conv.bias": torch.ones(3)}, vae)
    edit_json(base / "text_encoder" / "config.json", hidden_act="relu")
    edit_json(base / "scheduler" / "scheduler_config.json", thresholding=True)
    with pytest.raises(UserError) as error:
        read(assemble([base]))
    message = str(error.value)
    assert "\n" not in message
    for fault in (
        "unet: missing key conv_in.weight (16, 4, 3, 3)",
        "unet: unexpected key extra.weight",
        "vae: shape of quant_conv.bias is (3,), expected (8,)",
        "text_encoder: CLIP text config: hidden_act='relu' is not supported",
        "thresholding=True is not supported",
    ):
        assert fault in message


def test_weights_without_config_are_refused(sources, tmp_path):
    base = shutil.copytree(sources.base, tmp_path / "base")
    (base / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match=re.escape("vae: its config.json is missing")):
        read(assemble([base]))


def test_taken_folders_are_left_alone(model, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        write(model, tmp_path)
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        write(model, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_empty_folders_are_filled(model, tmp_path):
    (tmp_path / "x").mkdir()
    write(model, tmp_path / "x")
    assert (tmp_path / "x" / "model_index.json").is_file()


def test_nothing_is_left_of_a_failure(model, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(folders.card, "render", fail)  # the last thing written
    with pytest.raises(OSError, match="disk full"):
        write(model, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def counts(component, config, prefix=""):
    shapes = torch_shapes(
        abstract(COMPONENTS[component].net, config), COMPONENTS[component].table(config)
    )
    sizes = [int(np.prod(shape)) for name, shape in shapes.items() if name.startswith(prefix)]
    return len(sizes), sum(sizes)


def test_published_counts():
    """Tensors and parameters at the size of Stable Diffusion 1.5."""
    adapter = IdAdapterConfig.for_unet(UNetConfig.sd15())
    assert counts("adapter", adapter, "image_proj.") == (56, 33_581_568)
    assert counts("adapter", adapter, "ip_adapter.") == (288, 44_679_168)
    assert counts("shadingnet", ShadingNetConfig.for_unet(UNetConfig.sd15())) == (340, 361_279_120)
    assert counts("unet", UNetConfig.sd15()) == (686, 859_520_964)
    assert counts("image_encoder", CLIPVisionConfig.vit_h14())[1] == 632_076_800

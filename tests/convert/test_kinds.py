"""Every layout is told by its contents and brought to the same names."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.components import plan
from convert.folder import assemble
from convert.kinds import identify
from fmv2.errors import UserError

ORDER = [
    *(f"down_blocks.{i}.attentions.{j}" for i in range(3) for j in range(2)),
    *(f"up_blocks.{i}.attentions.{j}" for i in range(1, 4) for j in range(3)),
    "mid_block.attentions.0",
]
LAYERS = [f"{path}.transformer_blocks.0.attn{n}" for path in ORDER for n in (1, 2)]


@pytest.fixture(scope="module")
def tree(sources):
    """Upstream's three dictionaries."""
    return torch.load(sources.model_bin, weights_only=True)


@pytest.fixture(scope="module")
def canonical(tree):
    """The adapter under our names."""
    return {
        f"{group}.{name}": t
        for group in ("image_proj", "ip_adapter")
        for name, t in tree[group].items()
    }


def check(part, expected):
    assert set(part.tensors) == set(expected)
    for name, ref in part.tensors.items():
        assert ref.read().tobytes() == expected[name].numpy().tobytes(), name


def test_model_bin(sources, tree, canonical):
    source = identify(sources.model_bin)
    assert source.kind == "Face-MakeUpV2 model.bin"
    check(source.parts["adapter"], canonical)
    check(source.parts["shadingnet"], tree["controlnet"])
    assert not source.unknown


def processors(tree):
    """As the trainer's U-Net holds the adapter: by path."""
    return {
        f"unet.{LAYERS[int(name.split('.')[0])]}.processor.{name.split('.', 1)[1]}": tensor
        for name, tensor in tree["ip_adapter"].items()
    }


def checkpoint(tree, base):
    unet = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    return {
        **{f"unet.{name}": tensor for name, tensor in unet.items()},
        **processors(tree),
        **{f"image_proj_model.{name}": tensor for name, tensor in tree["image_proj"].items()},
        **{f"contorlnet.{name}": tensor for name, tensor in tree["controlnet"].items()},
    }


@pytest.mark.parametrize("form", ["safetensors", "bin", "folder"])
def test_accelerate_checkpoints(tmp_path, sources, tree, canonical, form):
    tensors = checkpoint(tree, sources.base)
    if form == "bin":  # where shared tensors keep all their names
        tensors |= {
            f"adapter_modules.{name}": tensor for name, tensor in tree["ip_adapter"].items()
        }
        torch.save(tensors, tmp_path / "x")
    else:
        save_file(tensors, tmp_path / "model.safetensors")
    source = identify(
        {"bin": tmp_path / "x", "folder": tmp_path}.get(form, tmp_path / "model.safetensors")
    )
    assert source.kind == "Face-MakeUpV2 training checkpoint (Accelerate)"
    check(source.parts["adapter"], canonical)
    check(source.parts["shadingnet"], tree["controlnet"])
    check(
        source.parts["unet"],
        load_file(sources.base / "unet" / "diffusion_pytorch_model.safetensors"),
    )
    assert not source.unknown


def test_checkpoint_on_its_base(tmp_path, sources, tree):
    """Its U-Net has no config of its own and takes the base's."""
    save_file(checkpoint(tree, sources.base), tmp_path / "x")
    assembly = assemble([sources.base, tmp_path / "x"])
    assert assembly.notes == (f"{tmp_path / 'x'}: replaces unet",)
    assert set(plan(assembly.parts)) == {"unet", "vae", "text_encoder", "shadingnet", "adapter"}


def test_what_a_checkpoint_has_beside_is_listed(tmp_path, sources, tree):
    save_file(
        {**checkpoint(tree, sources.base), "discriminator.weight": torch.ones(1)}, tmp_path / "x"
    )
    assert identify(tmp_path / "x").unknown == ("discriminator.weight",)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_faceid_plus(tmp_path, tree, canonical, form):
    if form == "bin":
        torch.save({group: tree[group] for group in ("image_proj", "ip_adapter")}, tmp_path / "x")
    else:
        save_file(canonical, tmp_path / "x")
    source = identify(tmp_path / "x")
    assert source.kind == "IP-Adapter-FaceID-PlusV2"
    assert "taken for PlusV2" in source.notes[0]
    check(source.parts["adapter"], canonical)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("proj.0.weight", "norm.weight"), "IP-Adapter-FaceID, without the resampler"),
        (("latents", "proj_in.weight"), "IP-Adapter-Plus, without the projection of the identity"),
        (("proj.weight", "norm.weight"), "IP-Adapter, without the projection of the identity"),
    ],
)
def test_other_adapters_are_refused_with_the_reason(tmp_path, names, reason):
    tree = {
        "image_proj": {name: torch.ones(1) for name in names},
        "ip_adapter": {"1.to_k_ip.weight": torch.ones(1)},
    }
    torch.save(tree, tmp_path / "x")
    with pytest.raises(UserError, match=reason):
        identify(tmp_path / "x")


def test_lora(export, canonical):
    source = identify(export / "pytorch_lora_weights.safetensors")
    assert source.kind == "LoRA (peft)"
    check(source.parts["lora"], {name: t for name, t in canonical.items() if "_lora." in name})


def test_lora_of_another_scale_is_refused(tmp_path, export):
    tensors = load_file(export / "pytorch_lora_weights.safetensors")
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 8})}
    save_file(tensors, tmp_path / "x", metadata=metadata)
    with pytest.raises(UserError, match="alpha 8 and rank 4"):
        identify(tmp_path / "x")


@pytest.mark.parametrize(
    ("folder", "component", "kind"),
    [
        ("unet", "unet", "U-Net"),
        ("vae", "vae", "VAE"),
        ("text_encoder", "text_encoder", "CLIP text encoder"),
        ("image_encoder", "image_encoder", "CLIP image encoder"),
        ("shadingnet", "shadingnet", "ControlNet"),
        ("face_encoder", "face_encoder", "ArcFace IResNet"),
        ("coefficient_encoder", "coefficient_encoder", "DECA encoder"),
        ("ip_adapter/face-makeup-plusv2.safetensors", "adapter", "IP-Adapter-FaceID-PlusV2"),
    ],
)
def test_single_components(tmp_path, export, folder, component, kind):
    place = tmp_path / "a name that says nothing"
    copy = shutil.copytree if (export / folder).is_dir() else shutil.copy
    copy(export / folder, place)
    source = identify(place)
    assert (source.kind, list(source.parts)) == (kind, [component])
    assert (source.parts[component].config is None) == (component in ("adapter", "face_encoder"))


@pytest.mark.parametrize(
    ("folder", "sign"),
    [
        ("unet", "conv_norm_out.weight"),
        ("vae", "encoder.conv_in.weight"),
        ("image_encoder", "visual_projection.weight"),
        ("shadingnet", "controlnet_mid_block.weight"),
    ],
)
def test_a_file_that_lacks_a_tensor_is_known_all_the_same(tmp_path, export, folder, sign):
    (file,) = (export / folder).glob("*.safetensors")
    save_file({name: t for name, t in load_file(file).items() if name != sign}, tmp_path / "x")
    assert list(identify(tmp_path / "x").parts) == [folder]


def test_clip_with_both_halves(tmp_path, sources):
    image = load_file(sources.clip / "model.safetensors")
    text = {"text_model.final_layer_norm.weight": torch.ones(1), "logit_scale": torch.ones(1)}
    save_file({**image, **text}, tmp_path / "x")
    source = identify(tmp_path / "x")
    check(source.parts["image_encoder"], image)
    assert source.notes == ("the text half is left out",)


def test_deca(sources):
    source = identify(sources.deca)
    assert source.kind == "DECA"
    assert source.notes == ("DECA's details are left out",)
    check(
        source.parts["coefficient_encoder"],
        torch.load(sources.deca, weights_only=True)["E_flame"],
    )


def test_folders(sources, export):
    assert identify(sources.base).kind == "Stable Diffusion folder"
    source = identify(export)
    assert source.kind == "Face-MakeUpV2 folder"
    assert set(source.parts) == {
        "unet", "vae", "text_encoder", "image_encoder", "face_encoder", "coefficient_encoder",
        "shadingnet", "adapter",
    }  # fmt: skip


def test_folder_of_another_pipeline_is_refused(tmp_path, sources):
    shutil.copytree(sources.base, tmp_path / "x")
    index = tmp_path / "x" / "model_index.json"
    other = {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | other))
    shutil.rmtree(tmp_path / "x" / "scheduler")
    with pytest.raises(
        UserError, match=r"scheduler/ is missing; no place for component text_encoder_2"
    ):
        identify(tmp_path / "x")


def test_component_in_the_wrong_folder_is_refused(tmp_path, sources):
    shutil.copytree(sources.base, tmp_path / "x")
    shutil.rmtree(tmp_path / "x" / "vae")
    shutil.copytree(sources.base / "unet", tmp_path / "x" / "vae")
    with pytest.raises(UserError, match="is a U-Net, which does not belong in vae/"):
        identify(tmp_path / "x")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["model.diffusion_model.out.0.weight"], "original form; make a folder"),
        (
            ["some.weight", "other.weight"],
            "unknown kind of checkpoint: it holds other.weight, some.weight",
        ),
    ],
)
def test_unknown_kinds_are_refused(tmp_path, names, reason):
    save_file({name: torch.ones(1) for name in names}, tmp_path / "x")
    with pytest.raises(UserError, match=reason):
        identify(tmp_path / "x")


def test_missing_path(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        identify(tmp_path / "x")

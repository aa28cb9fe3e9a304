"""The commands, as a shell runs them: what they print, their exit status, what they leave."""

import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmv2.cli import main
from tests.convert.conftest import edit_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
ADAPTER = "ip_adapter/face-makeup-plusv2.safetensors"

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def fmv2(capsys, monkeypatch):
    """Runs a command: exit status, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(*words):
        status = main(["convert", *map(str, words)]) or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def copy(export, tmp_path):
    return shutil.copytree(export, tmp_path / "copy")


def test_there_and_back(fmv2, sources, export, tmp_path):
    status, _, err = fmv2("from-diffusers", *sources, "--out", tmp_path / "one")
    assert (status, f"wrote {tmp_path / 'one'}" in err) == (0, True)
    assert fmv2("to-diffusers", tmp_path / "one", tmp_path / "two", "--upstream")[0] == 0
    for path in export.rglob("*"):
        if path.is_file():
            again = tmp_path / "two" / path.relative_to(export)
            assert again.read_bytes() == path.read_bytes(), path


def test_dtype(fmv2, export, tmp_path):
    assert fmv2("to-diffusers", export, tmp_path / "x", "--dtype", "float16")[0] == 0
    for file in (tmp_path / "x").rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}


def test_verify(fmv2, export):
    status, out, _ = fmv2("verify", export)
    assert status == 0
    names = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert names == [
        "CLIP text encoder",
        "VAE encoder",
        "VAE decoder",
        "CLIP image encoder",
        "ArcFace",
        "DECA encoder",
        "U-Net",
        "ID tokens",
        "U-Net with adapter",
        "ShadingNet",
        "U-Net with adapter and ShadingNet",
    ]
    assert "above tolerance" not in out


def test_verify_exits_1_above_tolerance(fmv2, sources):
    status, out, _ = fmv2("verify", sources.base, "--tolerance", "1e-12")
    assert status == 1
    assert out.count("above tolerance") == 4  # no row for what is not there


def test_verify_exits_1_where_a_weight_is_not_a_number(fmv2, sources, tmp_path):
    base = shutil.copytree(sources.base, tmp_path / "x")
    tensors = load_file(base / "vae" / WEIGHTS)
    tensors["quant_conv.bias"][0] = torch.nan  # of the mean alone, the first of two outputs
    save_file(tensors, base / "vae" / WEIGHTS, metadata={"format": "pt"})
    status, out, _ = fmv2("verify", base)
    assert (status, out.count("above tolerance")) == (1, 1)


def test_inspect(fmv2, sources, export):
    status, out, _ = fmv2("inspect", export)
    assert status == 0
    assert "Face-MakeUpV2 folder" in out
    parameters = sum(tensor.numel() for tensor in load_file(export / "unet" / WEIGHTS).values())
    assert f"{parameters:,}" in out
    status, out, _ = fmv2("inspect", sources.model_bin, "--base", sources.base)
    assert (status, "Face-MakeUpV2 model.bin" in out, "fault" in out) == (0, True, False)
    lora = export / "pytorch_lora_weights.safetensors"
    status, out, _ = fmv2("inspect", lora, "--base", sources.base)
    assert (status, "LoRA (peft)" in out, "256" in out) == (0, True, True)


def test_inspect_names_what_is_missing_and_unknown(fmv2, sources, tmp_path):
    tree = torch.load(sources.model_bin, weights_only=True)
    del tree["controlnet"]["conv_in.bias"]
    tree["image_proj"]["more"] = torch.ones(1)
    torch.save(tree | {"extra": {"w": torch.ones(1)}}, tmp_path / "x")
    status, out, _ = fmv2("inspect", tmp_path / "x", "--base", sources.base)
    assert status == 1
    for fault in (
        "unknown tensor extra.w",
        "shadingnet: missing key conv_in.bias (16,)",
        "adapter: unexpected key image_proj.more",
    ):
        assert f"fault: {fault}" in out


def test_inspect_takes_stable_diffusion_15_without_a_base(fmv2, sources):
    status, out, _ = fmv2("inspect", sources.model_bin)
    assert status == 1
    assert "expected (320, 4, 3, 3)" in out
    assert "name another base with --base" in out


def truncate(folder):
    path = folder / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def remove_and_add_keys(folder):
    tensors = load_file(folder / "vae" / WEIGHTS)
    tensors["new.weight"] = tensors.pop("quant_conv.bias")
    save_file(tensors, folder / "vae" / WEIGHTS)


def misshape(folder):
    tensors = load_file(folder / ADAPTER)
    for name in ("ip_adapter.1.to_k_ip.weight", "ip_adapter.31.to_v_ip.weight"):
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, folder / ADAPTER)


class Foreign:
    """What no checkpoint should hold."""


def put_foreign_class(folder):
    (folder / "unet" / WEIGHTS).unlink()
    torch.save(
        {"w": torch.ones(1), "x": Foreign()}, folder / "unet" / "diffusion_pytorch_model.bin"
    )


def make_unknown(folder):
    save_file({"some.weight": torch.ones(1)}, folder / "shadingnet" / WEIGHTS)


def change_the_mathematics(folder):
    edit_json(
        folder / "unet" / "config.json",
        resnet_time_scale_shift="scale_shift",
        dual_cross_attention=True,
    )


def break_json(folder):
    (folder / "model_index.json").write_text("{")


@pytest.mark.parametrize("command", ["from-diffusers", "to-diffusers"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncate, ["truncated or corrupt safetensors file"]),
        (
            remove_and_add_keys,
            ["vae: missing key quant_conv.bias (8,)", "vae: unexpected key new.weight"],
        ),
        (
            misshape,
            [
                "ip_adapter.1.to_k_ip.weight is (15, 64), expected (16, 64)",
                "ip_adapter.31.to_v_ip.weight is (31, 64), expected (32, 64)",
            ],
        ),
        (put_foreign_class, ["foreign classes", "Foreign"]),
        (make_unknown, ["unknown kind of checkpoint: it holds some.weight"]),
        (
            change_the_mathematics,
            ["resnet_time_scale_shift='scale_shift'", "dual_cross_attention=True"],
        ),
        (break_json, ["model_index.json: cannot be read as JSON"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_refusals(fmv2, copy, tmp_path, command, spoil, said):
    """Each in one line with status 2, and nothing is written."""
    spoil(copy)
    out = tmp_path / "out"
    status, _, err = fmv2(
        command, copy, *(["--out", out] if command == "from-diffusers" else [out])
    )
    assert status == 2
    assert err.startswith(f"fmv2 convert {command}: ")
    assert len(err.splitlines()) == 1
    for words in said:
        assert words in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def test_a_taken_folder_is_refused_before_anything_is_read(fmv2, tmp_path):
    (tmp_path / "mine").write_text("")
    status, _, err = fmv2("from-diffusers", tmp_path / "no such source", "--out", tmp_path)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "exists and is not an empty folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_reading_commands_refuse_in_one_line(fmv2, tmp_path, command):
    status, _, err = fmv2(command, tmp_path / "x")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "no such file or folder" in err


def test_verify_needs_torch(fmv2, export, monkeypatch):
    monkeypatch.setitem(sys.modules, "convert.verification", None)
    status, _, err = fmv2("verify", export)
    assert (status, "pip install 'fmv2[torch]'" in err) == (2, True)


def test_adapters_of_another_rank_are_refused(fmv2, copy, tmp_path):
    """Widths that make no sense are the engine's to report."""
    tensors = load_file(copy / ADAPTER)
    tensors["image_proj.proj.0.weight"] = tensors["image_proj.proj.0.weight"].flatten()
    save_file(tensors, copy / ADAPTER)
    status, _, err = fmv2("to-diffusers", copy, tmp_path / "out")
    assert status == 2
    assert "adapter: shape of image_proj.proj.0.weight is (512,)" in err


def test_from_diffusers_needs_a_base(fmv2, sources, tmp_path):
    status, _, err = fmv2("from-diffusers", sources.model_bin, "--out", tmp_path / "x")
    assert status == 2
    assert "no Stable Diffusion folder among the sources (Face-MakeUpV2 model.bin)" in err

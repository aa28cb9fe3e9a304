"""The plan says what the compiler says; the search finds the largest batch that fits."""

import dataclasses
import importlib.util
import types

import jax
import pytest
from rich.console import Console

from fmv2.errors import UserError
from fmv2.models.flash import BACKWARD, FORWARD
from fmv2.parallel import MeshConfig, make_mesh
from tests.train.small import IMAGE_SIZE, small_configs
from train import plan as planning
from train.abstract import program
from train.compiled import Cost, Memory, collectives, cost, flash_calls, memory
from train.config import TrainConfig
from train.hardware import chip
from train.nets import Shapes
from train.objectives.face_makeup import FaceMakeUp
from train.optimizer import OptimizerConfig
from train.plan import Plan, find_devices, make_plan, plan_run

SHAPES = Shapes(small_configs(), Shapes.sd15().schedule)
CONFIG = TrainConfig(
    steps=1,
    objective=FaceMakeUp(id_weight=0.0, map_loss="none", rank=2),
    batch_size=8,
    size=IMAGE_SIZE,
    compute="float32",
)
V5E = chip("TPU v5 lite")
assert V5E is not None


def a_plan(**fields):
    return Plan(
        **{
            "device": "TPU v5 lite",
            "devices": 4,
            "batch_per_device": 2,
            "memory": Memory(10**9, 0, 2 * 10**9, 10**6),
            "held": {"frozen weights": 10**9},
            "cost": Cost(30e12, 400e9, 450e6, 2),
            "collectives": {"all-reduce": (3, 10**9)},
            "needed_flops": 20e12,
            "chip": V5E,
            **fields,
        }
    )


def test_equal_runs_have_one_program():
    """So that a second run in the same process compiles nothing."""

    def step(**fields):
        config = dataclasses.replace(CONFIG, **fields)
        return program(config, SHAPES, make_mesh(MeshConfig(), jax.devices()[:1])).step

    assert step() is step(batch_size=4, seed=1)  # shapes and values, which jit itself tells apart
    assert step() is not step(objective=FaceMakeUp(id_weight=0.0, map_loss="none", rank=4))
    assert step() is not step(optimizer=OptimizerConfig(learning_rate=1e-3))


def test_the_real_step_is_compiled_for_the_devices_here():
    devices = jax.devices()[:1]
    found, text = make_plan(CONFIG, SHAPES, devices)
    assert "ENTRY" in text
    assert found.devices == 1
    assert found.batch_per_device == 8
    assert found.memory.arguments > sum(found.held.values()) * 0.99
    assert found.held["running mean"] == found.held["trained weights"]
    assert found.held["optimizer"] > 2 * found.held["trained weights"]
    assert found.held["batch"] > 8 * 2 * IMAGE_SIZE**2 * 3
    # Small nets: element-wise work is no small part of it.
    assert 1 < found.cost.flops / found.needed_flops < 2
    assert found.chip is found.seconds is found.mfu is found.fits is None  # of a CPU


def test_time_is_by_cycles_or_else_by_whichever_takes_longer():
    assert a_plan().seconds == pytest.approx(450e6 / 1.5e9)
    assert a_plan().mfu == pytest.approx(20e12 / (0.3 * 197e12))
    by_bytes = a_plan(cost=Cost(30e12, 400e9, None, 0))
    assert by_bytes.seconds == pytest.approx(400 / 819)
    assert a_plan().fits
    assert not a_plan(memory=Memory(10**10, 0, 8 * 10**9, 0)).fits


def test_the_search_halves_down_to_the_largest_that_fits(monkeypatch):
    tried = []

    def attempt(config, shapes, devices):
        tried.append(config.batch_size // 4)
        return "too large" if tried[-1] > 11 else a_plan(batch_per_device=tried[-1])

    monkeypatch.setattr(planning, "_try", attempt)
    devices = [dataclasses.make_dataclass("Device", ["device_kind"])("TPU v5 lite")] * 4
    found = planning._largest(CONFIG, SHAPES, devices, Console(quiet=True))
    assert found.batch_per_device == 11
    assert tried == [1, 2, 4, 8, 16, 12, 10, 11]
    monkeypatch.setattr(planning, "_try", lambda *_: "too large")
    with pytest.raises(UserError, match=r"not even 1 samples per device fit: raise --mesh.fsdp or"):
        planning._largest(CONFIG, SHAPES, devices, Console(quiet=True))


def test_what_cannot_be_planned_is_refused(monkeypatch):
    with pytest.raises(UserError, match=r"memory of a cpu is not known here: name a --topology"):
        plan_run(CONFIG, search=True)
    with pytest.raises(UserError, match="8 devices"):
        plan_run(dataclasses.replace(CONFIG, mesh=MeshConfig(fsdp=3)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs its compiler: pip install 'fmv2\[tpu\]'"):
        plan_run(CONFIG, topology="v5e:2x2")


def test_what_does_not_fit_is_said_and_is_no_success(monkeypatch, capsys):
    monkeypatch.setattr(planning, "_try", lambda *_: "Used 20.00G of 15.75G hbm.")
    assert plan_run(CONFIG) == 1
    assert "does not fit: Used 20.00G of 15.75G hbm." in capsys.readouterr().out
    monkeypatch.setattr(planning, "_try", lambda *_: a_plan())
    assert plan_run(CONFIG) == 0
    said = capsys.readouterr().out
    for line in ("fits", "yes", "frozen weights", "all-reduce × 3", "300 ms", "0.34"):
        assert line in said


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: nothing is compiled for a TPU (pip install 'fmv2[tpu]')",
)
def test_a_tpu_that_is_not_here_is_compiled_for():
    devices = find_devices("v5e:2x2")
    found, text = make_plan(
        dataclasses.replace(CONFIG, batch_size=8, compute="bfloat16"), SHAPES, devices
    )
    assert found.fits
    assert found.cost.cycles
    assert found.mfu
    assert set(found.collectives) == {"all-reduce"}
    assert "estimated_cycles" in text
    with pytest.raises(UserError, match=r"v5e:7x9.*it takes a name such as v5e:4x4"):
        find_devices("v5e:7x9")


def test_memory_and_cost_are_the_compilers():
    def double(x):
        return x @ x

    x = jax.ShapeDtypeStruct((64, 64), "float32")
    compiled = jax.jit(double).lower(x).compile()
    assert memory(compiled).arguments == memory(compiled).outputs == 4 * 64 * 64
    assert cost(compiled, None) == Cost(2 * 64**3, cost(compiled, None).bytes, None, 0)
    given = jax.jit(double, donate_argnums=0).lower(x).compile()
    assert memory(given).outputs == 0


@pytest.mark.parametrize(("estimates", "cycles"), [((3, 4), 7), ((3, 2**63 - 1), None), ((), None)])
def test_cycles_are_unknown_where_the_compiler_has_no_estimate(estimates, cycles):
    lines = [f'%a = f32[4] add(%x, %y), config={{"estimated_cycles":"{n}"}}' for n in estimates]
    compiled = types.SimpleNamespace(
        as_text=lambda: "\n".join(lines),
        cost_analysis=lambda: {"flops": 2.0, "bytes accessed": 5.0},
    )
    assert cost(compiled, chip("TPU v5 lite")) == Cost(2.0, 5.0, cycles, 0)


def test_collectives_are_counted_by_kind_and_size():
    text = """
  %a = f32[4,8]{1,0} all-reduce(%x), replica_groups={}
  %b = (bf16[16]{0}, f32[2]{0}) all-reduce(%y, %z), to_apply=%add
  %c = ((f32[4]{0}), (f32[32]{0})) all-gather-start(%w)
  %g = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%v)
  %h = f32[6]{0} all-reduce-start(%x), replica_groups={}
  %d = f32[32]{0} all-gather-done(%c)
  %e = f32[4]{0} add(%all-reduce, %f)
"""
    assert collectives(text) == {
        "all-reduce": (3, 128 + 32 + 8 + 24),
        "all-gather": (1, 128),
        "collective-permute": (1, 16),
    }


@pytest.mark.parametrize(
    ("kind", "forward_cycles", "backward_cycles"),
    [("TPU v5e", 1740, 3275), ("TPU v5p", 1807 / 2, 3511 / 2), ("TPU v6 lite", 1390, 2235)],
)
def test_flash_attention_is_added_by_its_operands(kind, forward_cycles, backward_cycles):
    call = (
        "%jvp_{name}_.3 = (bf16[2,8,36,4096]) custom-call(%q), "
        "operand_layout_constraints={{bf16[2,8,36,4096], bf16[2,8,36,{keys}], f32[2,8,1,4096]}}"
    )
    text = "\n".join(
        [
            call.format(name=FORWARD, keys=1024),
            "%x = add(%y)",
            call.format(name=BACKWARD, keys=1024),
            call.format(name=FORWARD, keys=128),
            call.format(name=FORWARD, keys=576),
        ]
    )
    forward, backward, least, half = flash_calls(text, chip(kind))
    assert forward.flops == 2 * 2 * (2 * 8 * 4096 * 1024) * 36
    assert backward.flops == 5 / 2 * forward.flops
    assert forward.bytes == 2 * 2 * (2 * 8 * 36) * (4096 + 1024)
    assert backward.bytes == 2 * forward.bytes
    blocks = 2 * 8 * 4096 / 512
    assert forward.cycles == pytest.approx(blocks * forward_cycles)  # those of 40 channels
    assert backward.cycles == pytest.approx(blocks * backward_cycles)
    assert half.cycles == pytest.approx((least.cycles + forward.cycles) / 2)

"""How long a TPU takes over flash attention, by the schedule its compiler makes of the kernels.

    pip install "jax[tpu]"
    python benchmarks/tpu_attention.py --topology v5e:2x2

Of a Pallas kernel the compiler tells no `estimated_cycles`; but its final schedule, which it can
write out, has one bundle of instructions for each cycle. A kernel here is one straight line for
each block of queries, so that its bundles are the cycles of one block; what only the first and the
last block of a head run is counted for all. What a wait for memory would add is not in it.

Prints JSON. `cycles` are a core's for one block of 512 queries over a prompt's 77 keys (padded to
128) and over 1024, which is what `train.compiled.flash_calls` knows by heart.
"""

import dataclasses
import json
import os
import re
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path

# The host has no TPU: compile for one from the CPU backend.
os.environ.update(JAX_PLATFORMS="cpu")

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import SingleDeviceSharding

from fmv2.models.attention import attention
from train.plan import find_devices


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compile flash attention for a TPU and read the cycles off its schedule."""

    topology: str = "v5e:2x2"
    """Any that JAX knows: v4, v5e, v5p, v6e, each with its grid. One chip of it is compiled for."""
    head_dims: tuple[int, ...] = (40, 64, 80, 128, 160, 256)


KEYS = (77, 1024)


def main(settings: Settings) -> dict:
    """Cycles of a block of queries, by head dimension, kernel and number of keys."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = (
            f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
            "--xla_jf_dump_llo_pass_label_regex=final"
        )
        device = find_devices(settings.topology)[0]
        measured = {
            dim: [schedules(dim, n, device, Path(folder)) for n in KEYS]
            for dim in settings.head_dims
        }
    cycles = {
        dim: {name: [found[name] for found in by_keys] for name in ("forward", "backward")}
        for dim, by_keys in measured.items()
    }
    return {"chip": device.device_kind, "versions": versions(), "keys": KEYS, "cycles": cycles}


def schedules(head_dim: int, keys: int, device, folder: Path) -> dict[str, int]:
    """The bundles of both kernels."""

    def heads(tokens):
        shape, sharding = (16, tokens, 8, head_dim), SingleDeviceSharding(device)
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    def there_and_back(query, key, value, gradient):
        call = partial(attention, implementation="pallas")
        return jax.vjp(call, query, key, value)[1](gradient)

    given = [heads(n) for n in (4096, keys, keys, 4096)]
    jax.jit(there_and_back).lower(*given).compile()
    found = {}
    for path in folder.glob("*flash_*schedule-analysis_final_bundles.txt"):
        name = re.search(r"flash_(forward|backward)", path.name)
        bundles = re.search(r"total scheduled bundles: +(\d+)", path.read_text())
        assert name is not None
        assert bundles is not None
        found[name[1]] = int(bundles[1])
    for path in folder.iterdir():
        path.unlink()
    return found


def versions() -> dict[str, str]:
    """Of what made the schedules."""
    return {"jax": version("jax"), "libtpu": version("libtpu")}


if __name__ == "__main__":
    print(json.dumps(main(tyro.cli(Settings)), indent=2))

"""One setting for every test: CPU, eight devices, full float32, strict shapes, no network."""

import os
from pathlib import Path

# Read once, when jax, transformers and huggingface_hub are first imported.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import random

import jax
import numpy as np
import pytest
import torch

jax.config.update("jax_num_cpu_devices", 8)
# Most of a test's time is XLA compiling a net that then runs once.
jax.config.update("jax_disable_most_optimizations", True)
# Compiling takes most of the time of a run; a second run finds what the first one compiled.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
torch.set_num_threads(1)  # the nets are tiny, and pytest-xdist runs one process per core


@pytest.fixture(autouse=True)
def _fixed_seeds():
    """No test sees what another drew, so each passes alone and in any order."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)

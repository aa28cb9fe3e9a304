"""One setting for every test: CPU, eight devices, full float32, strict shapes, no network."""

import os

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
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _fixed_seeds():
    """No test sees what another drew, so each passes alone and in any order."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)

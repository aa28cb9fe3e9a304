"""The exported folder's own pipeline, in PyTorch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fmv2.errors import UserError


def render(
    folder: Path,
    prompts: Sequence[str],
    arrays: Mapping[str, Float[np.ndarray, "n ..."]],
    settings: Mapping[str, Any],
) -> Float[np.ndarray, "n s s 3"]:
    """What an export draws from the same noise by DPM-Solver++, [0, 1].

    Args:
      folder: the export, with `pipeline.py` in it.
      prompts: one for each picture.
      arrays: as that pipeline takes them: id_embeds, faces and negative_faces as hidden states;
        shading and latents channels last.
      settings: its other arguments.
    Raises:
      UserError: PyTorch or diffusers are missing.
    """
    try:
        from convert.quiet import quiet

        quiet()
        import torch
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    except ImportError as e:
        raise UserError(f"the export is drawn by PyTorch: pip install 'fmv2[torch]' ({e})") from e
    given = {name: torch.from_numpy(np.array(x)) for name, x in arrays.items()}
    for name in ("shading", "latents"):
        given[name] = given[name].permute(0, 3, 1, 2)
    name = str(folder)
    pipeline: Any = DiffusionPipeline.from_pretrained(
        name, custom_pipeline=name, trust_remote_code=True, dtype=torch.float32
    )
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(list(prompts), **given, **settings, output_type="np").images

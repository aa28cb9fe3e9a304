"""The model card of an exported folder."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

_INTRO = """\
---
library_name: diffusers
pipeline_tag: text-to-image
---

# {title}

Weights for [diffusers](https://github.com/huggingface/diffusers), written by `fmv2 convert`.

| component | file | parameters | dtype |
| --- | --- | ---: | --- |
{rows}
"""

_USE = """
## Use

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
images = pipe("a woman smiling", id_embeds=id_embeds, faces=faces, shading=shading).images
```

`id_embeds` are ArcFace embeddings of unit length, (b, 512); `faces` the aligned faces as images, or
CLIP's hidden states -2; `shading` the shading maps, (b, 3, H, W) in [0, 1]. Install peft as well:
without it diffusers drops the adapter's LoRA with no more than a warning. Stock ControlNet
pipelines are no substitute for `pipeline.py`: they give ShadingNet the text where it expects the
four ID tokens.

## The adapter in stock diffusers

```python
pipe.load_ip_adapter(folder, "ip_adapter", "{adapter}", image_encoder_folder=None)
projector = pipe.unet.encoder_hid_proj.image_projection_layers[0]
projector.shortcut = True
projector.clip_embeds = face_features  # (2 b, 1, 257, 1280), the unconditional half first
```

- FaceID-Plus and FaceID-PlusV2 files hold the same tensors, and diffusers takes this one for Plus.
  Left without `shortcut = True` the images are wrong, and nothing says so. `clip_embeds` must be
  set before every call with other faces.
- `{lora}` holds the LoRA that the adapter file holds too, for tools that
  want it apart. After `load_ip_adapter` do not load it again: it would count twice.
- After `load_ip_adapter` never call `save_pretrained`: the U-Net's own weights would be written
  under other names. Load further LoRAs after it, with `set_adapters`.
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One component in the card's table."""

    component: str
    file: Path
    parameters: int
    dtypes: list[str]


def render(rows: Sequence[Row], *, lora: str) -> str:
    """The card in Markdown.

    Args:
      rows: of its table.
      lora: the file that holds the adapter's LoRA alone.
    """
    adapter = next((row.file.name for row in rows if row.file.parent.name == "ip_adapter"), None)
    card = _INTRO.format(
        title="Stable Diffusion" if adapter is None else "Face-MakeUpV2",
        rows="\n".join(
            f"| {row.component} | `{row.file}` | {row.parameters:,} | {', '.join(row.dtypes)} |"
            for row in rows
        ),
    )
    return card if adapter is None else card + _USE.format(adapter=adapter, lora=lora)

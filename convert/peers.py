"""Torch nets that no library ships, to compare with. Only `verify` and tests import this."""

import torch
from torch import nn

from fmv2.models.arcface import ArcFaceConfig


class _Block(nn.Module):
    def __init__(self, channels: int, out_channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.prelu = nn.PReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
            if stride > 1
            else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(y)) + self.downsample(x)


class IResNet(nn.Module):
    """ArcFace's backbone under the state-dict names of insightface's arcface_torch.

    Images (b, 3, h, w), RGB in [-1, 1], to embeddings (b, d), not normalised.
    """

    def __init__(self, config: ArcFaceConfig):
        super().__init__()
        channels = config.widths[0]
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        for stage, (width, count) in enumerate(zip(config.widths, config.layers, strict=True), 1):
            rest = [_Block(width, width, stride=1) for _ in range(count - 1)]
            stage_blocks = nn.Sequential(_Block(channels, width, stride=2), *rest)
            self.add_module(f"layer{stage}", stage_blocks)
            channels = width
        self.bn2 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels * config.map_size**2, config.embedding_size)
        self.features = nn.BatchNorm1d(config.embedding_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.bn1(self.conv1(images)))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.features(self.fc(self.bn2(x).flatten(1)))

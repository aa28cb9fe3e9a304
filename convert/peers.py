"""Torch nets that no library ships, to compare with. Only `verify` and tests import this."""

import torch
from torch import nn

from fmv2.models.arcface import ArcFaceConfig
from fmv2.models.coefficient_encoder import COUNTS, CoefficientEncoderConfig


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


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )
            if stride > 1 or channels != 4 * width
            else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        return (self.bn3(self.conv3(y)) + self.downsample(x)).relu()


class _ResNet(nn.Module):
    def __init__(self, config: CoefficientEncoderConfig):
        super().__init__()
        channels = config.widths[0]
        self.conv1 = nn.Conv2d(3, channels, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        for stage, (width, count) in enumerate(zip(config.widths, config.layers, strict=True), 1):
            rest = [_Bottleneck(4 * width, width, stride=1) for _ in range(count - 1)]
            first = _Bottleneck(channels, width, stride=1 if stage == 1 else 2)
            self.add_module(f"layer{stage}", nn.Sequential(first, *rest))
            channels = 4 * width

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.bn1(self.conv1(images)).relu())
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return x.mean((2, 3))


class DecaEncoder(nn.Module):
    """DECA's coarse encoder under the state-dict names of `E_flame`.

    Images (b, 3, h, w), RGB in [0, 1], to its 236 numbers.
    """

    def __init__(self, config: CoefficientEncoderConfig):
        super().__init__()
        self.encoder = _ResNet(config)
        self.layers = nn.Sequential(
            nn.Linear(4 * config.widths[-1], config.hidden_size),
            nn.ReLU(),
            nn.Linear(config.hidden_size, sum(COUNTS)),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(self.encoder(images))

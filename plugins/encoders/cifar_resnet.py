"""The small residual networks of He et al. 2016 for 32x32 images (arXiv:1512.03385, section 4.2).

6n+2 layers: one 3x3 convolution, then three stages of n basic blocks at full, half and quarter resolution with widths
w, 2w and 4w. Shortcuts carry no parameters: where the width doubles, every second pixel is taken and the new channels
are zero ("option A"), as the paper does for CIFAR. The paper's final linear layer is left out. Knows nothing of larger
images' needs; for those take the torchvision or timm encoders.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from cl_core.errors import ConfigError
from cl_core.types import Encoder, run_blocks


def resnet8(*, width: PositiveInt = 16, in_channels: int = 3, width_mult: float = 1.0) -> CifarResNet:
    """ResNet-8 for small images (He et al. 2016, section 4.2, n=1): 75 thousand parameters at width 16.

    width: channels of the first stage; the features have 4 * width.
    """
    return CifarResNet(8, width=max(1, round(width * width_mult)), in_channels=in_channels)


def resnet20(*, width: PositiveInt = 16, in_channels: int = 3, width_mult: float = 1.0) -> CifarResNet:
    """ResNet-20 for small images (He et al. 2016, section 4.2, n=3): 0.27 million parameters at width 16.

    width: channels of the first stage; the features have 4 * width.
    """
    return CifarResNet(20, width=max(1, round(width * width_mult)), in_channels=in_channels)


class CifarResNet(Encoder):
    """Residual network of `depth` = 6n+2 layers with stages stage1, stage2, stage3; `out_dim` is 4 * width.

    Works at any size from 1x1 on; 8x8 tiles reach stage3 as 2x2. Raises ConfigError where depth is not 6n+2.
    """

    def __init__(self, depth: int, *, width: int = 16, in_channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ConfigError(f"a CIFAR ResNet of depth {depth} does not exist; depths are 6n+2: 8, 14, 20, 32, 44, 56")
        self.out_dim = 4 * width
        self.conv1 = _conv3x3(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.stage1 = _stage(blocks, width, width, stride=1)
        self.stage2 = _stage(blocks, width, 2 * width, stride=2)
        self.stage3 = _stage(blocks, 2 * width, 4 * width, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """images (N, C, H, W) -> stage1 (N, w, H, W), stage2 (N, 2w, H/2, W/2), stage3 (N, 4w, H/4, W/4)."""
        return run_blocks(self.blocks(), images)

    def blocks(self) -> dict[str, nn.Module]:
        """What leads from each stage to the next; the first starts at the images."""
        stem = nn.Sequential(self.conv1, self.bn1, nn.ReLU(), self.stage1)
        return {"stage1": stem, "stage2": self.stage2, "stage3": self.stage3}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around an identity shortcut (option A): (N, C, H, W) -> (N, C', H', W')."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.added = out_channels - in_channels
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H/stride, W/stride)."""
        residual = F.relu(self.bn1(self.conv1(features)), inplace=True)
        return F.relu(self.bn2(self.conv2(residual)) + self._shortcut(features), inplace=True)

    def _shortcut(self, features: Tensor) -> Tensor:
        if self.stride > 1:
            features = features[:, :, :: self.stride, :: self.stride]
        return F.pad(features, (0, 0, 0, 0, 0, self.added)) if self.added else features


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def _stage(blocks: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))

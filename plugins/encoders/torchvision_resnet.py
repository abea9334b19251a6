"""torchvision's residual networks, cut open into stages, with a stem for small or for large images.

Weights are always drawn anew; nothing is ever downloaded. Parameters keep torchvision's names, so a trained encoder
loads into torchvision's own model (all but `fc`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn
from torchvision import models

from cl_core.types import Encoder, run_blocks

Stem = Literal["cifar", "imagenet"]


def resnet18(*, stem: Stem = "cifar", zero_init_residual: bool = False, in_channels: PositiveInt = 3) -> Encoder:
    """ResNet-18 of torchvision (He et al. 2016, arXiv:1512.03385): 11.2 million parameters, 512 features.

    stem: "cifar" is one 3x3 convolution at full resolution (SimCLR, appendix B.9), for images up to about 64 px;
        "imagenet" is 7x7 with stride 2 and max pooling, 16 times less work.
    zero_init_residual: every block starts as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
    """
    net = models.resnet18(weights=None, zero_init_residual=zero_init_residual)
    return TorchvisionResNet(net, stem=stem, in_channels=in_channels)


def resnet50(*, stem: Stem = "cifar", zero_init_residual: bool = False, in_channels: PositiveInt = 3) -> Encoder:
    """ResNet-50 of torchvision (He et al. 2016, arXiv:1512.03385): 23.5 million parameters, 2,048 features.

    stem: "cifar" is one 3x3 convolution at full resolution (SimCLR, appendix B.9), for images up to about 64 px;
        "imagenet" is 7x7 with stride 2 and max pooling, 16 times less work.
    zero_init_residual: every block starts as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
    """
    net = models.resnet50(weights=None, zero_init_residual=zero_init_residual)
    return TorchvisionResNet(net, stem=stem, in_channels=in_channels)


class TorchvisionResNet(Encoder):
    """A torchvision ResNet without its classifier; stage1 to stage4 are its layer1 to layer4."""

    def __init__(self, net: models.ResNet, *, stem: Stem, in_channels: int) -> None:
        super().__init__()
        self.out_dim = net.fc.in_features
        self.conv1 = _stem_convolution(net, stem, in_channels)
        self.bn1, self.relu = net.bn1, net.relu
        self.maxpool = net.maxpool if stem == "imagenet" else nn.Identity()
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """images (N, C, H, W) -> maps at 1, 1/2, 1/4, 1/8 of the size (stem "cifar"), or at 1/4 to 1/32."""
        return run_blocks(self.blocks(), images)

    def blocks(self) -> dict[str, nn.Module]:
        """What leads from each stage to the next; the first starts at the images."""
        stem = nn.Sequential(self.conv1, self.bn1, self.relu, self.maxpool, self.layer1)
        return {"stage1": stem, "stage2": self.layer2, "stage3": self.layer3, "stage4": self.layer4}


def _stem_convolution(net: models.ResNet, stem: Stem, in_channels: int) -> nn.Conv2d:
    if stem == "imagenet" and in_channels == net.conv1.in_channels:
        return net.conv1
    size, stride = (7, 2) if stem == "imagenet" else (3, 1)
    conv = nn.Conv2d(in_channels, net.conv1.out_channels, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv

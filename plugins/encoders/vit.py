"""A plain vision transformer for small images (Dosovitskiy et al. 2021, arXiv:2010.11929), open for masked training.

Blocks are timm's. Positions are fixed sines and cosines, so that any image size works; there is no class token,
features are the average of the patch tokens. Beside `stages` it offers `tokens` and `encode`, so that a method can
leave tokens out.
"""

from __future__ import annotations

from pydantic import PositiveInt
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from cl_core.errors import ConfigError
from cl_core.types import Encoder

_STAGES = 4


class ViT(Encoder):
    """Vision transformer without class token (Dosovitskiy et al. 2021, arXiv:2010.11929), for masked autoencoders.

    patch: side of a patch in pixels. width: of the tokens, a multiple of 4 and of heads. depth: blocks, at least 4;
    stage1 to stage4 are the patch tokens after a quarter, half, three quarters and all of them, each through the final
    norm. Raises ConfigError for widths that do not divide, and for images whose sides are no multiples of patch.
    """

    def __init__(
        self,
        *,
        patch: PositiveInt = 4,
        width: PositiveInt = 96,
        depth: PositiveInt = 6,
        heads: PositiveInt = 3,
        in_channels: PositiveInt = 3,
        width_mult: float = 1.0,
    ) -> None:
        super().__init__()
        width = round(width * width_mult)
        if width % 4 or width % heads:
            raise ConfigError(f"encoder vit: width {width} must be a multiple of 4 and of heads ({heads}); change one")
        if depth < _STAGES:
            raise ConfigError(f"encoder vit: depth {depth} gives no {_STAGES} stages; set depth to {_STAGES} or more")
        self.patch, self.out_dim = patch, width
        self.embed = nn.Conv2d(in_channels, width, patch, patch)
        self.layers = nn.ModuleList([Block(width, heads, qkv_bias=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.embed.weight.view(width, -1))
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """images (N, C, H, W) -> four maps (N, width, H / patch, W / patch)."""
        rows, columns = (side // self.patch for side in images.shape[-2:])
        kept = [len(self.layers) * (number + 1) // _STAGES - 1 for number in range(_STAGES)]
        tokens, maps = self.tokens(images), []
        for index, layer in enumerate(self.layers):
            tokens = layer(tokens)
            if index in kept:
                maps.append(self.norm(tokens).transpose(1, 2).unflatten(2, (rows, columns)))
        return {f"stage{number}": features for number, features in enumerate(maps, start=1)}

    def tokens(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> embedded patches with their positions, row by row (N, L, width)."""
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ConfigError(
                f"encoder vit cuts images into patches of {self.patch} px, and {height}x{width} px does not divide; "
                f"make data.size a multiple, or change patch"
            )
        patches = self.embed(images).flatten(2).transpose(1, 2)
        return patches + positions(height // self.patch, width // self.patch, self.out_dim, patches)

    def encode(self, tokens: Tensor) -> Tensor:
        """Any of the tokens (N, L', width) through all blocks and the final norm (N, L', width)."""
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens)


def positions(rows: int, columns: int, width: int, like: Tensor) -> Tensor:
    """Sines and cosines of both coordinates, row by row: (rows * columns, width), of the type and device of `like`."""
    grid: Tensor = build_sincos2d_pos_embed([rows, columns], width, device=like.device)
    return grid.to(like.dtype)

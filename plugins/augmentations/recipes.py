"""The augmentation chains of papers, by name; each number stands beside its source.

A recipe only names operations and their options: it returns {argument of the method: [{"name": ..., **options}]}.
None of them standardises; encoders get images in [0, 1].
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from cl_core.types import UnitInterval

Chains = dict[str, list[dict[str, Any]]]

Side = Annotated[int, Field(ge=4, le=1024)]
Share = Annotated[float, Field(gt=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=2.5)]


def simclr(strength: Strength = 1.0, min_scale: Share = 0.08, size: Side | None = None) -> Chains:
    """SimCLR's chain for ImageNet (Chen et al. 2020, arXiv:2002.05709, appendix A).

    strength: of the colour jitter. min_scale: smallest area of the crop. size: side of the views, None keeps the
    images'.
    """
    return {
        "augment": [
            _crop(size, min_scale),
            {"name": "horizontal_flip", "prob": 0.5},
            *_simclr_colour(strength),
            _blur(0.5),  # appendix A: half of the time, kernel a tenth of the side, sigma in [0.1, 2.0]
        ]
    }


def simclr_cifar(strength: Strength = 0.5, min_scale: Share = 0.08, size: Side | None = None) -> Chains:
    """SimCLR's chain for CIFAR-10: half the jitter, no blur (Chen et al. 2020, arXiv:2002.05709, appendix B.9).

    strength: of the colour jitter. min_scale: smallest area of the crop (0.2 helps short runs). size: side of the
    views, None keeps the images'.
    """
    return {
        "augment": [
            _crop(size, min_scale),
            {"name": "horizontal_flip", "prob": 0.5},
            *_simclr_colour(strength),
        ]
    }


def byol(strength: Strength = 1.0, min_scale: Share = 0.08, size: Side | None = None) -> Chains:
    """BYOL's two chains, T and T' (Grill et al. 2020, arXiv:2006.07733, appendix B and table 6).

    strength: of the colour jitter, 1 is the paper's. min_scale: smallest area of the crop. size: side of the views,
    None keeps the images'.
    """
    common = [
        _crop(size, min_scale),
        {"name": "horizontal_flip", "prob": 0.5},
        # Table 6: brightness 0.4, contrast 0.4, saturation 0.2, hue 0.1, applied to 80 %; grey 20 %.
        _jitter(0.4, 0.4, 0.2, 0.1, strength),
        {"name": "grayscale", "prob": 0.2},
    ]
    return {
        "augment_a": [*common, _blur(1.0)],  # table 6, T: blur always, no solarisation
        "augment_b": [*common, _blur(0.1), {"name": "solarize", "threshold": 0.5, "prob": 0.2}],  # table 6, T'
    }


def dino(
    strength: Strength = 1.0, min_scale: Share = 0.4, size: Side | None = None, local_size: Side | None = None
) -> Chains:
    """DINO's multi-crop: two large crops as BYOL's, and small ones (Caron et al. 2021, arXiv:2104.14294, section 3.1).

    strength: of the colour jitter. min_scale: area at which large crops begin and small ones end. size, local_size:
    sides of the large and of the small views, 224 and 96 in the paper; None keeps the images'.
    """
    large = byol(strength, min_scale, size)
    small = [
        {**_crop(local_size, 0.05), "scale": [0.05, min_scale]},
        {"name": "horizontal_flip", "prob": 0.5},
        _jitter(0.4, 0.4, 0.2, 0.1, strength),
        {"name": "grayscale", "prob": 0.2},
        _blur(0.5),  # main_dino.py: half of the small crops
    ]
    return {**large, "augment_local": small}


def swav(
    strength: Strength = 1.0, min_scale: Share = 0.14, size: Side | None = None, local_size: Side | None = None
) -> Chains:
    """SwAV's multi-crop: SimCLR's colours on large and small crops (Caron et al. 2020, arXiv:2006.09882, appendix A).

    strength: of the colour jitter. min_scale: area at which large crops begin and small ones end. size, local_size:
    sides of the large and of the small views, 224 and 96 in the paper; None keeps the images'.
    """
    rest = [{"name": "horizontal_flip", "prob": 0.5}, *_simclr_colour(strength), _blur(0.5)]
    small = {**_crop(local_size, 0.05), "scale": [0.05, min_scale]}
    return {"augment": [_crop(size, min_scale), *rest], "augment_small": [small, *rest]}


def moco(strength: Strength = 1.0, min_scale: Share = 0.2, size: Side | None = None) -> Chains:
    """MoCo v2's chain (Chen et al. 2020, arXiv:2003.04297, section 3; numbers of the released code).

    The paper blurs with Pillow, without a limit on the kernel; here the kernel is a tenth of the side as in SimCLR.
    strength: of the colour jitter. min_scale: smallest area of the crop. size: side of the views, None keeps the
    images'.
    """
    return {
        "augment": [
            _crop(size, min_scale, "bilinear"),  # main_moco.py: scale (0.2, 1), torchvision's default interpolation
            _jitter(0.4, 0.4, 0.4, 0.1, strength),  # main_moco.py: "not strengthened", applied to 80 %
            {"name": "grayscale", "prob": 0.2},
            _blur(0.5),  # sigma in [0.1, 2.0]
            {"name": "horizontal_flip", "prob": 0.5},
        ]
    }


def crop_flip(min_scale: Share = 0.08, flip: UnitInterval = 0.5, size: Side | None = None) -> Chains:
    """Crop and flip only, for supervised and linear-probe training (Szegedy et al. 2015, arXiv:1409.4842, section 6).

    min_scale: smallest area of the crop. flip: share of mirrored images; 0 where a mirrored image is another thing, as
    with digits. size: side of the views, None keeps the images'.
    """
    return {"augment": [_crop(size, min_scale, "bilinear"), {"name": "horizontal_flip", "prob": flip}]}


def _crop(size: int | None, min_scale: float, interpolation: str = "bicubic") -> dict[str, Any]:
    """Area from [min_scale, 1], aspect from [3/4, 4/3]: SimCLR appendix A, BYOL appendix B; both resize bicubically."""
    return {
        "name": "random_resized_crop",
        "size": size,
        "scale": [min_scale, 1.0],
        "ratio": [3 / 4, 4 / 3],
        "interpolation": interpolation,
    }


def _simclr_colour(strength: float) -> list[dict[str, Any]]:
    """Jitter of 0.8 s, 0.8 s, 0.8 s, 0.2 s on 80 %, then grey on 20 %: SimCLR appendix A, get_color_distortion."""
    return [_jitter(0.8, 0.8, 0.8, 0.2, strength), {"name": "grayscale", "prob": 0.2}]


def _jitter(brightness: float, contrast: float, saturation: float, hue: float, strength: float) -> dict[str, Any]:
    return {
        "name": "color_jitter",
        "brightness": brightness,
        "contrast": contrast,
        "saturation": saturation,
        "hue": hue,
        "strength": strength,
        "prob": 0.8,
    }


def _blur(prob: float) -> dict[str, Any]:
    return {"name": "gaussian_blur", "kernel": 0.1, "sigma": [0.1, 2.0], "prob": prob}

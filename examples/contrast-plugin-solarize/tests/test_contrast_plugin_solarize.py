import torch
from contrast_plugin_solarize import SolarizeRange

from cl_core import SampleRng
from cl_core.testing import check_augmentation


def test_solarize_range_keeps_the_contract_of_an_augmentation():
    check_augmentation(SolarizeRange(prob=1.0))


def test_pixels_under_the_lowest_threshold_never_change():
    dark = torch.full((16, 3, 4, 4), 0.25)
    assert torch.equal(SolarizeRange(lowest=0.3, prob=1.0)(dark, SampleRng(0, 0, torch.arange(16))), dark)

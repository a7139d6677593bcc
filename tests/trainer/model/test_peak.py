"""The share of a GPU's peak that a run gets, against figures worked out by hand."""

import pytest

from trainer.model.architecture import parse_architecture
from trainer.model.cost import layers
from trainer.model.peak import peak_flops, utilisation


def test_the_peak_is_that_of_the_card_that_the_driver_names() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989.5e12
    assert peak_flops("NVIDIA H100 PCIe") == 756.5e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("Tesla V100-SXM2-32GB") is None


def test_the_share_counts_three_passes_and_no_recomputing() -> None:
    assert utilisation(1000.0, 10**9, 2, 1e12) == pytest.approx(1000 * 1e9 * 6 / 2e12)
    macs = sum(layer.num_macs for layer in layers(parse_architecture("R50x1"), 1000, 224))
    # R50x1 has 4.09 GMAC at 224 px; at 4,318 images/s one H100 gives it 10.7 % of its peak.
    assert utilisation(4318.0, macs, 1, 989.5e12) == pytest.approx(0.107, abs=0.001)

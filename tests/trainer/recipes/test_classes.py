"""Classes matched by name."""

import pytest

from pipeline.base.errors import ConfigError
from trainer.recipes.classes import match_classes


def test_equal_lists_match_by_place_even_where_two_classes_have_one_name() -> None:
    imagenet = ("crane", "wasp", "crane")  # a bird and a machine
    assert match_classes(imagenet, imagenet, "train", "test") == (0, 1, 2)
    with pytest.raises(ConfigError, match=r"train has two classes of one name \('crane'\)"):
        match_classes(imagenet, ("wasp", "crane"), "train", "test")

"""Class names and resolutions as others write them beside weights."""

import json

import pytest

from pipeline.base.errors import ConfigError
from trainer.formats.description import (
    Description,
    class_names,
    read_description,
    timm_config,
    timm_name,
    transformers_config,
    transformers_processor,
)
from trainer.model.architecture import PAPER_MODELS, parse_architecture


def read(config: object, processor: object = None) -> Description:
    return read_description(json.dumps(config).encode(), json.dumps(processor or {}).encode(), "config.json")


@pytest.mark.parametrize("classes", [("cat", "dög"), ("0", "1"), None])
@pytest.mark.parametrize("model", ["R14x0.5", "R50x1"])
def test_what_is_written_is_read(model: str, classes: tuple[str, ...] | None) -> None:
    described = Description(classes, 96)
    architecture = parse_architecture(model)
    assert read(timm_config(architecture, 2, described)) == described
    assert read(transformers_config(architecture, 2, described), transformers_processor(described)) == described


def test_only_models_that_timm_has_are_named_for_it() -> None:
    assert timm_name(parse_architecture("R152x4")) == "resnetv2_152x4_bit"
    assert all(timm_name(parse_architecture(model)) for model in PAPER_MODELS)
    assert [timm_name(parse_architecture(model)) for model in ("R14x0.5", "R26x1", "R50x2", "R50x1-BN")] == [None] * 4


@pytest.mark.parametrize(
    ("config", "processor", "expected"),
    [
        ({"architecture": "resnetv2_50x1_bit", "pretrained_cfg": {"input_size": [3, 448, 448]}}, None, (None, 448)),
        ({"label_names": {"1": "b", "0": "a"}}, None, (("a", "b"), None)),
        ({"pretrained_cfg": {"label_names": ["a", "b"]}}, None, (("a", "b"), None)),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, None, (None, None)),
        ({"id2label": {"0": "tench"}}, {"size": 224, "do_center_crop": False}, (("tench",), 224)),
        ({}, {"size": {"shortest_edge": 448}, "crop_size": {"height": 384, "width": 384}}, (None, 384)),
        ({}, {"size": {"shortest_edge": 448}, "crop_size": 384, "do_center_crop": False}, (None, 448)),
    ],
)
def test_files_of_others_are_read(config: object, processor: object, expected: tuple[object, object]) -> None:
    assert read(config, processor) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\xff", "JSON: Invalid JSON"),
        (b"[" * 100_000, "JSON: Invalid JSON"),
        (b"[]", "JSON: Input should be an object"),
        (b'{"label_names": [{"a": 1}]}', "label_names"),
        (b'{"pretrained_cfg": {"input_size": [3]}}', "pretrained_cfg.input_size"),
        (b'{"id2label": {"0": "a", "7": "b"}}', r"labels \[0, 7\]"),
    ],
)
def test_a_damaged_description_says_where(body: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=f"config.json .*{message}"):
        read_description(body, b"{}", "config.json")


@pytest.mark.parametrize(
    ("body", "message"),
    [(b"", "no class name"), (b"a\n\nb\n", "line 2 is blank"), (b"a\nb\na", "line 3 repeats 'a'"), (b"\xff", "UTF-8")],
)
def test_lists_of_class_names_are_checked(body: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^names.txt.*{message}"):
        class_names(body, "names.txt")
    assert class_names("\ufeffcat\r\n dog \n".encode(), "names.txt") == ("cat", "dog")

"""What stands beside weights: class names and the size of images, as timm and transformers write and read them."""

from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from pipeline.base.errors import ConfigError
from trainer.model.architecture import NUM_GROUPS, PAPER_MODELS, Architecture

_LEVEL = [0.5, 0.5, 0.5]  # mean and deviation that take RGB from [0, 1] to [-1, 1]
_BILINEAR = 2  # of Pillow's filters, which transformers numbers as Pillow does


class Description(NamedTuple):
    """What a model's outputs mean and its inputs are.

    Attributes:
        classes: Names by label; None where they are not known.
        resolution_px: Side of the square that images are resized to; None where it is not known.
    """

    classes: tuple[str, ...] | None = None
    resolution_px: int | None = None


def timm_name(architecture: Architecture) -> str | None:
    """Return timm's name of a network; None where timm has no such model."""
    return f"resnetv2_{architecture.name.removeprefix('R')}_bit" if architecture.name in PAPER_MODELS else None


def timm_config(architecture: Architecture, num_classes: int, description: Description) -> dict[str, Any]:
    """Return what timm wants in the config.json of a folder; networks that it lacks have our name in it."""
    names = {"label_names": list(description.classes)} if description.classes else {}
    side = description.resolution_px
    return {
        "architecture": timm_name(architecture) or architecture.name,
        "num_classes": num_classes,
        "num_features": architecture.num_features,
        "global_pool": "avg",
        **names,
        "pretrained_cfg": {
            "num_classes": num_classes,
            "input_size": [3, side, side],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",  # the whole image becomes a square, as when we evaluate
            "mean": _LEVEL,
            "std": _LEVEL,
            "first_conv": "stem.conv",
            "classifier": "head.fc",
        },
    }


def transformers_config(architecture: Architecture, num_classes: int, description: Description) -> dict[str, Any]:
    """Return what transformers wants in config.json; classes without names have those that it gives them."""
    names = description.classes or tuple(map(_unnamed, range(num_classes)))
    return {
        "architectures": ["BitForImageClassification"],
        "model_type": "bit",
        "depths": list(architecture.units),
        "embedding_size": architecture.stem_channels,
        "hidden_sizes": [architecture.num_features // 2**power for power in (3, 2, 1, 0)],
        "num_channels": 3,
        "num_groups": NUM_GROUPS,
        "layer_type": "preactivation",
        "hidden_act": "relu",
        "global_padding": None,
        "output_stride": 32,
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
        "torch_dtype": "float32",
    }


def transformers_processor(description: Description) -> dict[str, Any]:
    """Return what transformers wants in preprocessor_config.json: the whole image, resized as when we evaluate."""
    side = description.resolution_px
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": _BILINEAR,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _LEVEL,
        "image_std": _LEVEL,
    }


class _PretrainedConfig(BaseModel):
    """Of timm's config.json."""

    input_size: tuple[int, int, int] | None = None
    label_names: list[str] | dict[int, str] | None = None


class _Config(BaseModel):
    """The config.json of timm or of transformers; what else it holds is ignored."""

    id2label: dict[int, str] | None = None
    label_names: list[str] | dict[int, str] | None = None
    pretrained_cfg: _PretrainedConfig = _PretrainedConfig()


class _Processor(BaseModel):
    """The preprocessor_config.json of transformers."""

    size: dict[str, int] | int | None = None
    crop_size: dict[str, int] | int | None = None
    do_center_crop: bool = True


def read_description(config: bytes, processor: bytes, source: str) -> Description:
    """Return what a config.json of timm or transformers says, and a preprocessor_config.json of transformers.

    Args:
        config: JSON.
        processor: JSON; `{}` where there is none.
        source: Names the first in errors.

    Raises:
        ConfigError: One is damaged, or is none.
    """
    try:
        about = _Config.model_validate_json(config)
        images = _Processor.model_validate_json(processor)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{source} does not say what classes and images are ({where or 'JSON'}: {first['msg']}); correct it, or "
            f"take the file of weights alone"
        ) from error
    names = about.label_names or about.pretrained_cfg.label_names or about.id2label
    side = about.pretrained_cfg.input_size[1] if about.pretrained_cfg.input_size else _side(images)
    return Description(_classes(names, source), side)


def class_names(body: bytes, source: str) -> tuple[str, ...]:
    """Return the names in a file of class names, one a line, by label.

    Raises:
        ConfigError: It is not UTF-8, has no name, or a line is blank or repeated.
    """
    try:
        names = [line.strip() for line in body.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} is not UTF-8 ({error}); it must have a class name a line, by label") from error
    if not names:
        raise ConfigError(f"{source} has no class name in it; it must have one a line, by label")
    seen: set[str] = set()
    for number, name in enumerate(names, start=1):
        if not name or name in seen:
            problem = f"repeats {name!r}" if name else "is blank"
            raise ConfigError(f"{source}, line {number} {problem}; a line is the name of a class, by label")
        seen.add(name)
    return tuple(names)


def _unnamed(label: int) -> str:
    """Return what transformers calls a class that has no name."""
    return f"LABEL_{label}"


def _classes(names: list[str] | dict[int, str] | None, source: str) -> tuple[str, ...] | None:
    by_label = dict(enumerate(names)) if isinstance(names, list) else names or {}
    if sorted(by_label) != list(range(len(by_label))):
        raise ConfigError(f"{source} has names for the labels {sorted(by_label)[:5]}..., which are not 0, 1, 2, ...")
    if all(name == _unnamed(label) for label, name in by_label.items()):
        return None
    return tuple(by_label[label] for label in range(len(by_label)))


def _side(images: _Processor) -> int | None:
    size = images.crop_size if images.do_center_crop and images.crop_size else images.size
    if isinstance(size, dict):
        return size.get("height") or size.get("shortest_edge")
    return size

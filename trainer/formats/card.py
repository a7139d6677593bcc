"""The model card: what the weights are, what they were trained on and how, in Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from trainer.formats.description import Description, timm_name
from trainer.formats.write import Format
from trainer.model.architecture import Architecture
from trainer.model.cost import layers

_LIBRARY: dict[Format, str] = {"timm": "timm", "transformers": "transformers", "onnx": "onnx"}
_LOADING: dict[Format, str] = {
    "official": "Load it with `model.load_from(numpy.load(FILE))` in big_transfer; `trainer import FILE RUN` here.",
    "big_transfer": "Load it with `model.load_state_dict(torch.load(FILE)['model'])` in big_transfer for PyTorch.",
    "big_vision": "Load it as `init='bit_paper'` weights of big_vision; `trainer import FILE RUN` here.",
    "transformers": "Load it with `transformers.BitForImageClassification.from_pretrained(FOLDER)`.",
    "onnx": "Load it with `onnxruntime.InferenceSession(FILE)`; input `images`, output `logits`.",
}
_MOST_CLASSES = 20  # named in the card; all stand in the files


@dataclass(frozen=True)
class Facts:
    """What is known of the weights of a checkpoint.

    Attributes:
        run: URL of the run.
        step: Of the checkpoint.
        architecture: Of the network.
        num_classes: Outputs of the head.
        description: Names of the classes, resolution.
        data: What it was trained on: URLs with versions.
        recipe: Settings of the training.
        changes: Settings that were changed on the way, a sentence each.
        measured: Figures on images held out from the training, by name; none where there are none.
        imported: Where the weights were taken from, for those of a file.
    """

    run: str
    step: int
    architecture: Architecture
    num_classes: int
    description: Description
    data: Sequence[str] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    changes: Sequence[str] = ()
    measured: Mapping[str, str] = field(default_factory=dict)
    imported: Mapping[str, Any] | None = None


def held_out_figures(result: Mapping[str, Any], test: str) -> dict[str, str]:
    """Return what a fine-tuned model is worth: accuracy with its interval, and on what.

    Args:
        result: Of a run of `trainer finetune`.
        test: What the test set is called.
    """
    low, high = (f"{100 * result[name]:.1f}" for name in ("low", "high"))
    return {
        "accuracy": f"{100 * result['accuracy']:.1f} % (95 % interval {low} to {high})",
        "test set": f"{test}, {result['num_test']:,} images, {result['num_correct']:,} of them right",
        "training set": f"{result['num_train']:,} images"
        + (f", {result['shots']} for each class" if result.get("shots") else ""),
    }


def model_card(facts: Facts, file_format: Format, digests: Mapping[str, str]) -> str:
    """Return the card.

    Args:
        facts: Of the checkpoint.
        file_format: Of the files.
        digests: SHA-256 of each file by name.
    """
    side = facts.description.resolution_px or 0
    found = layers(facts.architecture, facts.num_classes, side)
    num_parameters, num_macs = sum(each.num_parameters for each in found), sum(each.num_macs for each in found)
    summary = (
        f"BiT ResNet-v2, {num_parameters:,} parameters, {num_macs / 1e9:.2f} GMAC at {side} px. Images are RGB in "
        f"[-1, 1] (mean 0.5, deviation 0.5), the whole image resized to {side} x {side} px, bilinear."
    )
    lines = [
        "---", f"library_name: {_LIBRARY.get(file_format, 'pytorch')}", "pipeline_tag: image-classification",
        "tags:", "- image-classification", "- big-transfer", "- bit", "---",
        f"# {facts.architecture.name} with {facts.num_classes:,} classes",
        "", summary, "", *_loading(facts, file_format), "", f"Classes: {_classes(facts)}.", "",
        *_table("", "", {"run": f"`{facts.run}`, step {facts.step:,}"}
                | {"data": "; ".join(facts.data) or "unknown"}
                | {"written by": f"bit-pretrain {metadata.version('bit-pretrain')}"}
                | {f"SHA-256 of {name}": f"`{digest}`" for name, digest in digests.items()}),
    ]  # fmt: skip
    if facts.recipe:
        lines += ["", "## Recipe", "", *_table("setting", "value", facts.recipe)]
        lines += ["", *(f"- {change}" for change in facts.changes)] if facts.changes else []
    if facts.measured:
        lines += ["", "## Measured", "", *_table("figure", "value", facts.measured)]
    if facts.imported:
        origin = facts.imported
        lines += ["", f"Imported from `{origin['file']}` ({origin['layout']}, SHA-256 `{origin['sha256']}`)."]
    return "\n".join(lines) + "\n"


def _table(left: str, right: str, rows: Mapping[str, Any]) -> Iterator[str]:
    yield f"| {left} | {right} |"
    yield "| --- | --- |"
    for name, value in rows.items():
        yield f"| {name} | {value} |"


def _classes(facts: Facts) -> str:
    names = facts.description.classes
    if not names:
        return "their names are not known; they are numbered as in the training data"
    more = f" and {len(names) - _MOST_CLASSES:,} more" if len(names) > _MOST_CLASSES else ""
    return ", ".join(names[:_MOST_CLASSES]) + more


def _loading(facts: Facts, file_format: Format) -> Sequence[str]:
    if file_format != "timm":
        return [_LOADING[file_format]]
    name, architecture = timm_name(facts.architecture), facts.architecture
    if name:
        by_name = f"timm.create_model('{name}', num_classes={facts.num_classes}, checkpoint_path=FILE)"
        return [
            f"Load a folder with `timm.create_model('local-dir:FOLDER', pretrained=True)`, a file with `{by_name}`."
        ]
    sizes = f"{list(architecture.units)}, width_factor={architecture.width:g}, num_classes={facts.num_classes}"
    return [
        f"timm has no model of the name {architecture.name}; its parts make one:",
        "",
        "```python",
        "from functools import partial",
        "from timm.layers import StdConv2d",
        "from timm.models import load_checkpoint",
        "from timm.models.resnetv2 import ResNetV2",
        "",
        "conv = partial(StdConv2d, eps=1e-8)",
        f'model = ResNetV2({sizes}, stem_type="fixed", conv_layer=conv)',
        "load_checkpoint(model, FILE)  # model.safetensors of a folder",
        "```",
    ]

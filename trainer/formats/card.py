"""The model card: what the weights are, what they were trained on and how, in Markdown."""

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from trainer.formats.files import Format
from trainer.model.cost import layers

_LIBRARY: dict[Format, str] = {"timm": "timm", "transformers": "transformers", "onnx": "onnx"}
_LOADING: dict[Format, str] = {
    "official": "`model.load_from(numpy.load(FILE))` in big_transfer; `trainer import FILE RUN` here.",
    "timm": "`timm.create_model(NAME, num_classes=K, checkpoint_path=FILE)` with NAME `resnetv2_{variant}_bit`.",
    "big_transfer": "`model.load_state_dict(torch.load(FILE)['model'])` in big_transfer for PyTorch.",
    "big_vision": "`init='bit_paper'` weights of big_vision; `trainer import FILE RUN` here.",
    "transformers": "`transformers.BitForImageClassification.from_pretrained(FOLDER)`.",
    "onnx": "`onnxruntime.InferenceSession(FILE)`; input `images`, output `logits`.",
}


def model_card(facts: Mapping[str, Any], file_format: Format, digests: Mapping[str, str]) -> str:
    """Return the card.

    Args:
        facts: Of the checkpoint: model, num_classes, data, data_version, resolution_px, step, run, config, metrics,
            architecture; of a fine-tuned model also its result.
        file_format: Of the files.
        digests: SHA-256 of each file by name.
    """
    found = layers(facts["architecture"], facts["num_classes"], facts["resolution_px"])
    num_parameters, num_macs = sum(each.num_parameters for each in found), sum(each.num_macs for each in found)
    loading = _LOADING[file_format].format(variant=facts["model"].lower().removeprefix("r"))
    data = facts.get("data") or facts["config"].get("train", "unknown")
    version = facts.get("data_version") or facts["config"].get("train_version", "unknown")
    summary = (
        f"BiT ResNet-v2, {num_parameters:,} parameters, {num_macs / 1e9:.2f} GMAC at {facts['resolution_px']} px. "
        f"Pictures are RGB in [-1, 1] (mean 0.5, deviation 0.5)."
    )
    lines = [
        "---", f"library_name: {_LIBRARY.get(file_format, 'pytorch')}", "pipeline_tag: image-classification",
        "tags:", "- image-classification", "- big-transfer", "- bit", "---",
        f"# {facts['model']} with {facts['num_classes']:,} classes",
        "", summary, "", f"Load it with {loading}", "", "| | |", "| --- | --- |",
        f"| run | `{facts['run']}`, step {facts['step']:,} |",
        f"| data | `{data}`, version {version} |",
        f"| written by | bit-pretrain {metadata.version('bit-pretrain')} |",
        *(f"| SHA-256 of {name} | `{digest}` |" for name, digest in digests.items()),
    ]  # fmt: skip
    recipe = facts["config"].get("recipe") or (facts.get("result") or {}).get("recipe")
    if isinstance(recipe, Mapping):
        lines += ["", "## Recipe", "", "| setting | value |", "| --- | --- |"]
        lines += [f"| {name} | {value} |" for name, value in recipe.items()]
    measured = facts.get("result") or facts["metrics"]
    if measured:
        lines += ["", "## Measured", "", "| figure | value |", "| --- | --- |"]
        lines += [f"| {name} | {value} |" for name, value in measured.items() if isinstance(value, int | float)]
    origin = facts["config"].get("imported")
    if origin:
        lines += ["", f"Imported from `{origin['file']}` ({origin['layout']}, SHA-256 `{origin['sha256']}`)."]
    return "\n".join(lines) + "\n"

"""Takes official weights through timm and transformers, each in its own environment, and back: equal bits and logits.

Usage: python tests/peers/read_weights.py [--models R50x1,R14x0.5]

npz -> ours -> timm's folder -> timm, which loads and saves it -> ours -> npz; the same through transformers. Both must
know the classes by name, and make of an image the pixels that our evaluation does. timm has no R14x0.5: there the
commands of the model card must load it.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image

from pipeline.image.render import render
from pipeline.image.transforms import EvaluationView
from pipeline.store.url import open_store
from trainer.checkpoint.record import require_latest
from trainer.checkpoint.weights import load_model
from trainer.formats.description import Description
from trainer.formats.write import Format, export_files
from trainer.jobs.exchange import export_weights, import_weights
from trainer.model.build import new_model
from trainer.step.ranks import alone

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from peers import peer_python

CLASSES = tuple(f"class {label}" for label in range(1000))
SIDE = 128
_READ = """
import json, os, sys, numpy as np, torch
from PIL import Image
os.environ["HF_HUB_OFFLINE"] = "1"
classes = json.load(open("classes.json"))
images, image = torch.from_numpy(np.load("images.npy")), Image.open("image.png").convert("RGB")
"""
_TIMM = f"""
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
{_READ}
import timm
from safetensors.torch import save_file
config = json.load(open("timm/config.json"))
if config["architecture"] in timm.list_models():
    model = timm.create_model("local-dir:timm", pretrained=True)
    assert list(model.pretrained_cfg["label_names"]) == classes
    assert model.default_cfg["num_classes"] == len(classes)
else:
    exec(open("card.py").read().replace("FILE", "'timm/model.safetensors'"))
model.eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(config["pretrained_cfg"]))
np.save("pixels.npy", transform(image).numpy())
os.mkdir("timm-back")
save_file(model.state_dict(), "timm-back/model.safetensors")
with torch.no_grad():
    np.save("logits.npy", model(images).numpy())
"""
_TRANSFORMERS = f"""
{_READ}
from transformers import BitForImageClassification, BitImageProcessorPil
model, about = BitForImageClassification.from_pretrained("transformers", output_loading_info=True)
assert not about["missing_keys"] and not about["unexpected_keys"] and not about["mismatched_keys"], about
assert [model.config.id2label[label] for label in range(len(classes))] == classes
processor = BitImageProcessorPil.from_pretrained("transformers")
np.save("pixels.npy", processor(image, return_tensors="np")["pixel_values"][0])
model.eval().save_pretrained("transformers-back")
processor.save_pretrained("transformers-back")
with torch.no_grad():
    np.save("logits.npy", model(images).logits.numpy())
"""
_PEERS: tuple[tuple[Format, str, tuple[str, ...]], ...] = (
    ("timm", _TIMM, ("torch==2.13.0", "timm==1.0.31", "safetensors")),
    ("transformers", _TRANSFORMERS, ("torch==2.13.0", "transformers==5.14.1", "pillow")),
)
# Both standardise with epsilon 1e-8, ours is 1e-10; fresh kernels have variances down to 2e-4, and there are 50 layers.
_CLOSE = 1e-3
_CLOSE_PIXELS = 2 / 127.5  # two levels of 256: resizing rounds in other places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="R50x1,R14x0.5")
    for model in parser.parse_args().models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            take_through_peers(model, Path(folder))


def take_through_peers(model: str, folder: Path) -> None:
    """Take a model there and back, and check what came."""
    network = new_model(model, len(CLASSES), seed=0)
    torch.nn.init.normal_(network.head.fc.weight, std=0.01, generator=torch.Generator().manual_seed(0))
    first = folder / "official.npz"
    for name, body in export_files(network, "official", first.name, Description(CLASSES, SIDE)).items():
        (folder / name).write_bytes(body)
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    generator = torch.Generator().manual_seed(1)
    np.save(folder / "images.npy", torch.rand(2, 3, SIDE, SIDE, generator=generator).mul(2).sub(1).numpy())
    coarse = np.random.default_rng(2).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC).save(folder / "image.png")
    import_weights(str(first), str(folder / "run"))
    for file_format, program, requirements in _PEERS:
        export_weights(str(folder / "run"), str(folder / file_format), file_format)
        snippet = re.search(r"```python\n(.*?)```", (folder / file_format / "README.md").read_text(), re.DOTALL)
        (folder / "card.py").write_text(snippet[1] if snippet else "")
        python = peer_python(f"{file_format}-cpu", *requirements)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        subprocess.run([python, "-c", program], cwd=folder, env=environment, check=True)
        again = folder / f"{file_format}.npz"
        back = import_weights(str(folder / f"{file_format}-back"), str(folder / f"run-{file_format}"))
        assert (back.classes, back.resolution_px) == ((CLASSES, SIDE) if file_format == "transformers" else (None, 224))
        export_weights(str(folder / f"run-{file_format}"), str(again), "official")
        with np.load(first) as one, np.load(again) as other:
            assert one.files == other.files
            for key in one.files:
                assert one[key].dtype == other[key].dtype, key
                assert (one[key] == other[key]).all(), key
        error = difference(folder)
        assert error < _CLOSE, error
        of_pixels = float(np.abs(np.load(folder / "pixels.npy") - our_pixels(folder)).max())
        assert of_pixels < _CLOSE_PIXELS, of_pixels
        way = f"{model}, npz -> ours -> {file_format} -> ours -> npz"
        print(
            f"{way}: {len(network.state_dict())} arrays equal bit for bit; logits differ by {error:.1e} of their "
            f"deviation, pixels by {127.5 * of_pixels:.1f} of 256 levels; classes have their names"
        )


def difference(folder: Path) -> float:
    """Return how far the peer's logits are from ours, against their deviation."""
    store = open_store(str(folder / "run"))
    with torch.no_grad():
        images = torch.from_numpy(np.load(folder / "images.npy"))
        ours = load_model(store, alone(), require_latest(store))(images).numpy()
    return float(np.abs(np.load(folder / "logits.npy") - ours).max() / ours.std())


def our_pixels(folder: Path) -> np.ndarray:
    """Return the image as we evaluate it, in [-1, 1], channels first."""
    pixels = np.empty((SIDE, SIDE, 3), np.uint8)
    render((folder / "image.png").read_bytes(), EvaluationView(SIDE), Random(0), pixels)
    return pixels.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1


if __name__ == "__main__":
    main()

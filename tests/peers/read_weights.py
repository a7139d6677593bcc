"""Takes official weights through timm and transformers, each in its own environment, and back: equal bits and logits.

Usage: python tests/peers/read_weights.py [--model R50x1]

npz -> ours -> timm's file -> timm, which loads and saves it -> ours -> npz; the same through transformers.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from pipeline.store.url import open_store
from trainer.checkpoint.record import require_latest
from trainer.checkpoint.weights import load_model
from trainer.formats.convert import from_ours
from trainer.formats.files import files_of
from trainer.formats.layouts import LAYOUTS
from trainer.jobs.exchange import export_weights, import_weights
from trainer.model.build import new_model
from trainer.step.ranks import alone

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from peers import peer_python

_IMAGES = """
import numpy as np, torch
images = torch.from_numpy(np.load("images.npy"))
"""
_TIMM = f"""
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import sys, timm
from safetensors.torch import load_file, save_file
{_IMAGES}
model = timm.create_model("resnetv2_" + sys.argv[1].lower().removeprefix("r") + "_bit", num_classes=1000).eval()
model.load_state_dict(load_file("timm.safetensors"), strict=True)
save_file(model.state_dict(), "back.safetensors")
with torch.no_grad():
    np.save("logits.npy", model(images).numpy())
"""
_TRANSFORMERS = f"""
{_IMAGES}
from transformers import BitForImageClassification
model, about = BitForImageClassification.from_pretrained("hf", output_loading_info=True)
assert not about["missing_keys"] and not about["unexpected_keys"] and not about["mismatched_keys"], about
model.eval().save_pretrained("back")
with torch.no_grad():
    np.save("logits.npy", model(images).logits.numpy())
"""
# Both standardise with epsilon 1e-8, ours is 1e-10; fresh kernels have variances down to 2e-4, and there are 50 layers.
_CLOSE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="R50x1")
    model = parser.parse_args().model
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network = new_model(model, 1000, seed=0)
        torch.nn.init.normal_(network.head.fc.weight, std=0.01, generator=torch.Generator().manual_seed(0))
        values = from_ours(network.state_dict(), LAYOUTS["official"])
        first = folder / "official.npz"
        first.write_bytes(files_of(values, "official", first.name, network.architecture)[first.name])
        generator = torch.Generator().manual_seed(1)
        np.save(folder / "images.npy", torch.rand(2, 3, 128, 128, generator=generator).mul(2).sub(1).numpy())
        import_weights(str(first), str(folder / "run"))
        peers = (
            ("timm", "timm.safetensors", "back.safetensors", _TIMM, ("torch==2.13.0", "timm==1.0.31", "safetensors")),
            ("transformers", "hf", "back/model.safetensors", _TRANSFORMERS, ("torch==2.13.0", "transformers==5.14.1")),
        )
        for file_format, out, back, program, requirements in peers:
            export_weights(str(folder / "run"), str(folder / out), file_format)  # type: ignore[arg-type]
            python = peer_python(f"{file_format}-cpu", *requirements)
            environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            subprocess.run([python, "-c", program, model], cwd=folder, env=environment, check=True)
            again = folder / f"{file_format}.npz"
            import_weights(str(folder / back), str(folder / f"run-{file_format}"))
            export_weights(str(folder / f"run-{file_format}"), str(again), "official")
            with np.load(first) as one, np.load(again) as other:
                assert one.files == other.files
                for key in one.files:
                    assert one[key].dtype == other[key].dtype, key
                    assert (one[key] == other[key]).all(), key
            error = difference(folder)
            assert error < _CLOSE, error
            way = f"npz -> ours -> {file_format} -> ours -> npz"
            print(f"{way}: {len(values)} arrays equal bit for bit; logits differ by {error:.1e} of their deviation")


def difference(folder: Path) -> float:
    """Return how far the peer's logits are from ours, against their deviation."""
    store = open_store(str(folder / "run"))
    with torch.no_grad():
        images = torch.from_numpy(np.load(folder / "images.npy"))
        ours = load_model(store, alone(), require_latest(store))(images).numpy()
    return float(np.abs(np.load(folder / "logits.npy") - ours).max() / ours.std())


if __name__ == "__main__":
    main()

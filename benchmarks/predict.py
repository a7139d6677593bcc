"""What `trainer predict` costs: images/s from files to Parquet against bare forward passes with data in memory.

    trainer pretrain DATASET RUN --model R50x1 --recipe bit-s --workers 0 --set recipe.epochs=0.1
    python benchmarks/predict.py RUN DATASET [--px 224] [--batch 64] [--rounds 3]

Contenders, in this process, in turn, on all pictures of the dataset:
- `bare`: the network on batches of pixels that are in memory, with softmax and the best five; nothing else.
- `predict`: what `trainer predict` does on a rank: read, decode, resize, forward, names, Parquet files; with what it
  takes to begin, such as reading the checkpoint.
Before it is timed, the predictions of both are compared: they must be the same. Physical limit: on processors, the time
of the forward passes over that with what decoding takes of the same cores, which is printed; on a GPU 1.0.
"""

import argparse
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from side_by_side import compare
from torch import Tensor

from pipeline.dataset.dataset import open_dataset
from pipeline.image.transforms import EvaluationView
from pipeline.packing.foreign_tars.open_any import open_any
from pipeline.store.url import absolute_url, open_store
from pipeline.streaming.rendered import RenderedBatch, rendered
from pipeline.streaming.selection import Selection
from trainer.checkpoint.weights import load_chosen_model
from trainer.jobs.config import InferenceConfig
from trainer.jobs.pictures import DatasetInputs, Origin
from trainer.jobs.predict import infer
from trainer.step.ranks import alone, cores_per_rank
from trainer.step.tensors import pixels_to_device


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("data")
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    world = alone()
    model, _ = load_chosen_model(open_store(args.run), world, None)
    version = open_dataset(args.data).version.version
    began = time.process_time()
    batches = _in_memory(args.data, version, args.px, args.batch)
    decoding_seconds = time.process_time() - began
    count = sum(len(batch.abouts) for batch in batches)

    def bare() -> list[int]:
        with torch.inference_mode():
            return [guess for batch in batches for guess in _best(model(pixels_to_device(batch.images, world.device)))]

    def predict(folder: str) -> list[int]:
        config = InferenceConfig(
            run=absolute_url(args.run), sources=(absolute_url(args.data),), data_version=version,
            out=folder, output="predictions", resolution_px=args.px, batch_size=args.batch,
        )  # fmt: skip
        infer(config, world, lambda row: None)
        parts = sorted(Path(folder, "predictions").iterdir())
        return [guess for part in parts for guess in pq.read_table(part)["prediction"].to_pylist()]

    with tempfile.TemporaryDirectory() as scratch:
        folders = iter(f"{scratch}/{number}" for number in range(args.rounds + 1))
        began = time.process_time()
        expected = bare()
        seconds = time.process_time() - began
        assert predict(next(folders)) == expected, "the predictions differ"
        most = seconds / (seconds + decoding_seconds)
        forward_ms, decoding_ms = (1e3 * each / count for each in (seconds, decoding_seconds))
        print(f"{count:,} images; CPU of each: forward {forward_ms:.1f} ms, decoding {decoding_ms:.1f} ms", end="; ")
        print(f"so where both have the same cores the ratio is {most:.3f} at most")
        compare(
            "predict against bare forward passes",
            {"bare": lambda: len(bare()), "predict": lambda: len(predict(next(folders)))},
            "image",
            args.rounds,
        )


def _in_memory(data: str, version: int, side_px: int, batch_size: int) -> list[RenderedBatch[Origin]]:
    inputs = DatasetInputs(Selection(open_any(data, version)), 1024)
    pictures = inputs.pictures(range(len(inputs.sizes)))
    return list(rendered(pictures, EvaluationView(side_px), side_px, batch_size, cores_per_rank(alone())))


def _best(logits: Tensor) -> list[int]:
    chances, guesses = logits.float().softmax(1).topk(5, dim=1)
    chances.tolist()
    return [guessed[0] for guessed in guesses.tolist()]


if __name__ == "__main__":
    main()

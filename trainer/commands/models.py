"""Describe a model, and move weights in and out."""

import re

import click

from pipeline.base.console import echo, examples
from pipeline.base.errors import ConfigError
from pipeline.base.text import printable

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
# What a GPU's driver, allocator and convolution workspaces take besides; a choice, not measured.
_GPU_SHARE = 0.9
_SHOWN_CLASSES = 5
_LEAST_PX = 32  # what the network makes one output position of


@click.command(
    epilog=examples(
        "trainer describe R152x4",
        "trainer describe R152x4 --batch 8 --precision bfloat16 --recompute --shards 16 --gpu-memory 80GB",
        "trainer describe R50x1-BN --classes 1000 --resolution 160 --layers",
    )
)
@click.argument("model")
@click.option("--classes", "num_classes", default=1000, show_default=True, type=click.IntRange(1), help="Of the head.")
@click.option("--resolution", "resolution_px", default=224, show_default=True, type=click.IntRange(1), help="Pixels.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Pictures in one forward pass.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--recompute/--keep", "recomputes", default=False, show_default=True, help="Activations of units.")
@click.option("--shards", default=1, show_default=True, type=click.IntRange(1), help="Ranks that share the weights.")
@click.option("--gpu-memory", default="80GB", show_default=True, help="Of one GPU, to say which batch fits.")
@click.option("--layers", "all_layers", is_flag=True, help="Every layer instead of every unit.")
def describe(
    model: str,
    num_classes: int,
    resolution_px: int,
    batch: int,
    precision: str,
    recomputes: bool,
    shards: int,
    gpu_memory: str,
    all_layers: bool,
) -> None:
    """Print layers, parameters, multiply-accumulates and the memory of a training step of MODEL."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from trainer.model.architecture import parse_architecture  # noqa: PLC0415
    from trainer.model.cost import Layer, largest_batch, layers, step_memory  # noqa: PLC0415

    architecture = parse_architecture(model)
    found = layers(architecture, num_classes, resolution_px)
    rows: dict[str, list[Layer]] = {}
    for layer in found:
        rows.setdefault(layer.name if all_layers else layer.unit, []).append(layer)
    table = Table("layer" if all_layers else "unit", box=None)
    for title in ("output", "parameters", "MMAC"):
        table.add_column(title, justify="right")
    for name, members in rows.items():
        last = members[-1]
        table.add_row(
            name,
            f"{last.channels} x {last.height} x {last.width}",
            f"{sum(each.num_parameters for each in members):,}",
            f"{sum(each.num_macs for each in members) / 1e6:,.1f}",
        )
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    num_parameters, num_macs = sum(each.num_parameters for each in found), sum(each.num_macs for each in found)
    head = sum(each.num_parameters for each in found if each.name == "head.fc")
    console.print(
        f"\n{model}: {num_parameters:,} parameters ({num_parameters - head:,} without the head), "
        f"{num_macs / 1e9:.2f} GMAC for one picture of {resolution_px} px"
    )
    half = precision == "bfloat16"
    memory = step_memory(found, batch, half=half, recomputes=recomputes, num_shards=shards)
    how = f"{precision}, {'recomputing' if recomputes else 'keeping'} activations, shards: {shards}"
    console.print(f"\nA training step takes on each rank ({how}, micro-batch: {batch}):")
    parts = {
        "weights, gradients, moments": memory.weights,
        "kernels of a step": memory.kernels,
        "activations": memory.activations,
        "gradients of activations": memory.working,
        "all": memory.total,
    }
    for name, num_bytes in parts.items():
        console.print(f"  {name:<30} {num_bytes / 1e9:9.2f} GB")
    usable = int(_bytes_of(gpu_memory) * _GPU_SHARE)
    largest = largest_batch(found, usable, half=half, recomputes=recomputes, num_shards=shards)
    advice = "" if largest else "; try --recompute, --precision bfloat16 or more --shards"
    console.print(
        f"\nOf {gpu_memory}, a tenth left to the driver, {largest:,} pictures fit in one forward pass{advice}"
    )


def _bytes_of(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]B)", text.strip().upper())
    if not match:
        raise ConfigError(f"--gpu-memory {text!r}: write a number and a unit, such as 80GB")
    return int(float(match[1]) * _UNITS[match[2]])


@click.command(
    "import",
    epilog=examples(
        "trainer import BiT-M-R50x1.npz runs/bit-m-r50x1",
        "trainer import resnetv2_101x1_bit.safetensors runs/r101 --classes imagenet-classes.txt --resolution 448",
        "trainer import exported/pets runs/pets                                # a folder of timm or transformers",
        "trainer import BiT-M-R50x3.npz runs/r50x3 --model R50x3 --head drop --num-classes 10",
    ),
)
@click.argument("file")
@click.argument("out")
@click.option("--model", help="What the file must hold, such as R50x3; whatever it is by default.")
@click.option(
    "--head",
    type=click.Choice(["keep", "drop"]),
    help="Classifier: must be kept, or a new one of zeros; by default it is kept if it fits the classes.",
)
@click.option("--num-classes", type=click.IntRange(1), help="Of the classifier; that of the file by default.")
@click.option(
    "--classes", "classes_file", help="File with a class name a line, by label; those beside FILE by default."
)
@click.option(
    "--resolution", "resolution_px", type=click.IntRange(1), help="Pixels; those beside FILE, or 224, by default."
)
def import_file(
    file: str,
    out: str,
    model: str | None,
    head: str | None,
    num_classes: int | None,
    classes_file: str | None,
    resolution_px: int | None,
) -> None:
    """Make a run at OUT of a FILE of weights: official BiT .npz, timm, big_transfer, big_vision or transformers.

    Class names and resolution are taken from FILE.json, or from the config.json of a folder, where there is one.
    """
    from pipeline.store.any_url import read_file  # noqa: PLC0415
    from pipeline.store.url import absolute_url  # noqa: PLC0415
    from trainer.formats.description import class_names  # noqa: PLC0415
    from trainer.jobs.exchange import import_weights  # noqa: PLC0415

    classes = class_names(read_file(classes_file), classes_file) if classes_file else None
    done = import_weights(
        absolute_url(file),
        absolute_url(out),
        model=model,
        head=head,  # type: ignore[arg-type]
        num_classes=num_classes,
        classes=classes,
        resolution_px=resolution_px,
    )
    which_head = "its head" if done.head_is_kept else "a head of zeros"
    layout, count = done.layout, f"{done.num_classes:,}"
    echo(f"{done.model} from a file in the layout of {layout}, with {which_head} for {count} classes")
    beside = f", from {done.described_by}" if done.described_by else ""
    if done.classes is None:
        echo("classes: without names; to evaluate the run, import the file again with --classes")
    else:
        more = ", ..." if len(done.classes) > _SHOWN_CLASSES else ""
        shown = printable(", ".join(done.classes[:_SHOWN_CLASSES]))
        echo(f"classes: {shown}{more}{'' if classes else beside}")
    echo(f"resolution: {done.resolution_px} px{'' if resolution_px else beside or ', the default'}")


@click.command(
    "export",
    epilog=examples(
        "trainer export runs/m-r50x1 exported/m-r50x1.npz --format official",
        "trainer export runs/m-r50x1@20000 exported/m-r50x1-20000.npz --format official",
        "trainer export runs/transfer/models/0005-shots-0 exported/pets --format timm",
        "trainer export runs/m-r50x1 exported/m-r50x1 --format transformers",
        "trainer export runs/m-r50x1 exported/m-r50x1.onnx --format onnx --resolution any",
    ),
)
@click.argument("run_url", metavar="RUN[@STEP]")
@click.argument("out")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["official", "timm", "big_transfer", "big_vision", "transformers", "onnx"]),
    required=True,
    help="official is the .npz of BiT; transformers writes a folder, and timm where OUT has no suffix.",
)
@click.option(
    "--resolution",
    metavar="PX|any",
    help="Of the images that the files name; that of the run by default. With `any`, ONNX takes every size.",
)
def export_file(run_url: str, out: str, file_format: str, resolution: str | None) -> None:
    """Write a checkpoint of RUN to OUT for another code base, the newest one by default, with a model card beside it.

    Class names are those of the dataset of the training.
    """
    from pipeline.store.url import absolute_url  # noqa: PLC0415

    side = _pixels(resolution)
    from trainer.jobs.exchange import export_weights  # noqa: PLC0415 - torch: seconds
    from trainer.run.evaluations import run_and_step  # noqa: PLC0415

    run, step = run_and_step(run_url)
    done = export_weights(
        run,
        absolute_url(out),
        file_format,  # type: ignore[arg-type]
        step=step,
        resolution_px=side,
        any_size=resolution == "any",
    )
    for warning in done.warnings:
        echo(f"warning: {warning}", err=True)
    for url in done.urls:
        echo(url)


def _pixels(resolution: str | None) -> int | None:
    """Return the pixels of --resolution; None where the run's are meant."""
    if resolution in (None, "any"):
        return None
    if not str(resolution).isdigit() or int(str(resolution)) < _LEAST_PX:
        raise ConfigError(f"--resolution {resolution}: write a number of pixels from {_LEAST_PX}, or any")
    return int(str(resolution))

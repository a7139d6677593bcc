"""Plans in the words of the command line: what was found, and what differs between two of them."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from pipeline.base.errors import ConfigError, Interrupted, NotFound
from pipeline.base.ignored import ignored_line
from pipeline.base.quantities import quantity
from pipeline.dataset.versions import Published
from pipeline.packing.commit import read_plan
from pipeline.packing.plan import Plan, ShardConfig
from pipeline.store.base import Store

_SHOWN_CLASSES = 5
# Settings by their names in a plan, and the options that set them.
_OPTIONS = {
    "seed": "--seed",
    "split": "--split",
    "shard_bytes": "--shard-mb",
    "max_samples_per_shard": "--max-samples",
    "block_bytes": "--block-mib",
    "skip_duplicates": "--skip-duplicates",
    "image.check": "--check",
    "image.shorter_side_px": "--resize",
    "image.reencode": "--reencode",
    "image.jpeg_quality": "--jpeg-quality",
    "image.max_bytes": "--max-image-mb",
}
_UNITS = {"shard_bytes": 1_000_000, "block_bytes": 1 << 20, "image.max_bytes": 1_000_000}


def other_dataset(store: Store, published: Published, plan: Plan) -> ConfigError:
    """Return the error of packing into a dataset of another plan, with what differs."""
    different = list(_differences(store, published, plan))
    return ConfigError(
        f"{store.url} holds a dataset of other inputs or settings: {'; '.join(different)}. Choose another "
        f"destination, or `pipeline append` to it"
    )


def _differences(store: Store, published: Published, plan: Plan) -> Iterator[str]:
    """Yield in words what differs between the first plan of a dataset and another one."""
    try:
        held = read_plan(store, published.version.plan_ids[0])
    except NotFound:
        yield "it was indexed, not packed"
        return
    settings, wanted = _settings(held.config), _settings(plan.config)
    changed = [name for name in settings if settings[name] != wanted[name]]
    for name in changed:
        yield f"{_OPTIONS.get(name, name)} was {_in_unit(name, settings)} and is {_in_unit(name, wanted)}"
    added, removed = sorted({*plan.classes} - {*held.classes}), sorted({*held.classes} - {*plan.classes})
    if added or removed:
        listed = [f"{sign}{name}" for sign, names in (("+", added), ("-", removed)) for name in names]
        yield f"its classes differ ({', '.join(listed[:_SHOWN_CLASSES])}{', ...' * (len(listed) > _SHOWN_CLASSES)})"
    elif plan.classes != held.classes:
        yield "its classes have another order"
    if plan.config.skip_duplicates == held.config.skip_duplicates and plan.num_samples != held.num_samples:
        yield f"it was packed from {held.num_samples:,} images, the sources have {plan.num_samples:,}"
    if not changed and (plan.classes, plan.num_samples) == (held.classes, held.num_samples):
        yield "names, sizes or labels of its images differ"


def _settings(config: ShardConfig) -> dict[str, Any]:
    values = config.model_dump()
    image = values.pop("image")
    return values | {f"image.{name}": value for name, value in image.items()}


def _in_unit(name: str, settings: dict[str, Any]) -> Any:
    if settings[name] is None:
        return "not set"
    return settings[name] / _UNITS[name] if name in _UNITS else settings[name]


def found_lines(plan: Plan) -> Iterator[str]:
    """Yield in words which files were ignored, which images have no label, and which classes no image."""
    if plan.ignored:
        yield ignored_line(plan.ignored)
    if plan.num_unlabelled and plan.num_unlabelled < plan.num_samples:
        some = plan.num_unlabelled > len(plan.unlabelled)
        yield (
            f"{quantity(plan.num_unlabelled, 'image')} {'has' if plan.num_unlabelled == 1 else 'have'} no label"
            f"{', such as' if some else ':'} {', '.join(plan.unlabelled)}"
        )
    if plan.unused_classes:
        shown = ", ".join(plan.unused_classes[:_SHOWN_CLASSES])
        more = ", ..." if len(plan.unused_classes) > _SHOWN_CLASSES else ""
        yield f"{len(plan.unused_classes):,} of {len(plan.classes):,} classes have no image: {shown}{more}"


def interrupted(store: Store, plan: Plan) -> Interrupted:
    """Return the message of a run that was stopped: how much of it stays."""
    kept = list(store.list(f"commits/{plan.plan_id}/"))
    num_images = sum(plan.num_rows(int(PurePosixPath(entry.key).stem)) for entry in kept)
    return Interrupted(
        f"stopped; {num_images:,} of {plan.num_samples:,} images are packed and kept, in {len(kept):,} of "
        f"{plan.num_shards:,} shards of {store.url}; run the same command again to go on"
    )

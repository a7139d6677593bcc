"""The tiny scale, and folders that begin with it."""

from pathlib import Path
from typing import Any

from pipeline.store.url import open_store
from trainer.studies.grid import Grid
from trainer.studies.paper.catalogue import named_studies
from trainer.studies.scale import Scale, read_scale
from trainer.studies.settle import settled_grid


def tiny(data: Path, **changes: Any) -> Scale:
    return read_scale("tiny", str(data)).model_copy(update=changes)


def settled(out: Path, scale: Scale, *names: str) -> Grid:
    return settled_grid(open_store(str(out)), scale, named_studies(names))

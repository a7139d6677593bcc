"""The public names of `pipeline`: each is imported when it is first asked for."""

from .base.errors import (
    BitError as BitError,
    ConfigError as ConfigError,
    CorruptShard as CorruptShard,
    NotFound as NotFound,
    ResumeMismatch as ResumeMismatch,
    StorageError as StorageError,
)
from .dataset.dataset import (
    Address as Address,
    Dataset as Dataset,
    open_dataset as open_dataset,
)
from .image.transforms import (
    EvaluationView as EvaluationView,
    FinetuneView as FinetuneView,
    Placement as Placement,
    PretrainView as PretrainView,
    Randomness as Randomness,
    Transform as Transform,
)
from .packing.foreign_tars.open_any import open_any as open_any
from .store.url import open_store as open_store
from .streaming.choose import (
    listed_rows as listed_rows,
    rows_where as rows_where,
)
from .streaming.one_pass import (
    encoded_samples as encoded_samples,
    one_pass as one_pass,
)
from .streaming.order import OrderConfig as OrderConfig
from .streaming.selection import Selection as Selection
from .streaming.stream import (
    Batch as Batch,
    LoaderConfig as LoaderConfig,
    Stream as Stream,
    WeightedSelection as WeightedSelection,
)

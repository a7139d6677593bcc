"""Where the samples of a dataset hold their label: `.cls` in our shards, anywhere in adopted tars."""

from pipeline.dataset.dataset import Address, Dataset
from pipeline.exports.shard_tar import ShardTar

CLS = ".cls"
_FIELDS = ("label", "cls", "labels")


def label_place(dataset: Dataset, shard: ShardTar) -> str:
    """Return CLS, or the field of the JSON member that holds a label or a list of them, or "" where there is none.

    The first sample of the shard decides: the samples of a dataset are alike, or no such tool can read it.
    """
    if shard.is_ours:
        return CLS
    first = next(sample for sample in shard.layout.samples if sample.is_listed)
    if any(member.extension == "cls" for member in first.members):
        return CLS
    about = dataset.read_about(Address(shard.number, 0))
    return next((field for field in _FIELDS if about.get(field) is not None), "")

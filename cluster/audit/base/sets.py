"""The two sides of an audit: opened once per process, checked to be comparable and unchanged."""

from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from pipeline.base.errors import ConfigError, CorruptShard, NotFound
from pipeline.dataset.dataset import Address, Dataset
from pipeline.dataset.schema import PIXELS_COLUMN, image_digest, sha256_hex
from pipeline.image import fingerprint
from pipeline.packing.foreign_tars.open_any import open_any


@dataclass(frozen=True)
class Pinned:
    """One version of a dataset, as tasks name it.

    Attributes:
        digest: Of its list of shards: a dataset packed again at the same URL is another one.
    """

    url: str
    version: int
    digest: str


@dataclass(frozen=True)
class Sides:
    """Both sets of an audit."""

    up: Pinned
    down: Pinned

    @property
    def upstream(self) -> Dataset:
        """The opened upstream set."""
        return open_pinned(self.up)

    @property
    def downstream(self) -> Dataset:
        """The opened downstream set."""
        return open_pinned(self.down)

    @property
    def is_within(self) -> bool:
        """Whether one set is compared with itself."""
        return self.up == self.down


def pin(url: str) -> Pinned:
    """Pin the latest version of a dataset, or of WebDataset tars, which are indexed on first use.

    Raises:
        BitError: As pipeline.packing.foreign_tars.open_any.open_any.
    """
    version = open_any(url).version
    return Pinned(url, version.version, version.shards_sha256)


@lru_cache(maxsize=4)
def open_pinned(side: Pinned) -> Dataset:
    """Open a pinned version; once per process."""
    return open_any(side.url, side.version)


@lru_cache(maxsize=2)
def samples_of(side: Pinned) -> pa.Table:
    """Read shard, row, code, digest, quality, labels and key of all samples, and pixels if known; once per process."""
    columns = ["code", "digest", "quality", "labels", "key"]
    dataset = open_pinned(side)
    return dataset.all_samples([*columns, *([PIXELS_COLUMN] if has_pixels(dataset) else [])]).combine_chunks()


def has_pixels(dataset: Dataset) -> bool:
    """Return whether the sidecars have digests of decoded pixels; those that `cluster fingerprint` writes all do."""
    return PIXELS_COLUMN in dataset.samples(0).column_names


def content_digest(dataset: Dataset) -> str:
    """Return a digest of all sidecars of a dataset, in order of the shards: labels, digests and fingerprints."""
    table = dataset.shards.table
    return sha256_hex("\n".join(table["sidecar_sha256"].to_pylist()).encode())


def check_comparable(upstream: Dataset, downstream: Dataset) -> None:
    """Check that the codes of two sets can be compared.

    Raises:
        ConfigError: A set has no fingerprints, or fingerprints of another descriptor version.
    """
    for dataset in (upstream, downstream):
        if dataset.version.descriptor is None:
            raise ConfigError(
                f"{dataset.store.url} was packed with --check header and has no fingerprints; pack it with "
                f"--check decode, or audit the output of `cluster fingerprint` on its tars"
            )
    for dataset, other in ((upstream, downstream), (downstream, upstream)):
        if dataset.version.descriptor != fingerprint.DESCRIPTOR_VERSION:
            raise ConfigError(
                f"{dataset.store.url} has descriptors {dataset.version.descriptor}, this release compares "
                f"{fingerprint.DESCRIPTOR_VERSION} (as {other.store.url} "
                f"{'too' if other.version.descriptor == fingerprint.DESCRIPTOR_VERSION else 'neither'}); pack it "
                f"again, or audit the output of `cluster fingerprint` on its tars"
            )


def check_tar(dataset: Dataset, shard: int) -> None:
    """Check that a shard exists and has the size that the manifest records.

    Raises:
        NotFound: The tar does not exist.
        CorruptShard: Its size differs.
    """
    about = dataset.shards[shard]
    try:
        num_bytes = dataset.store.num_bytes(dataset.shard_path(shard))
    except NotFound as error:
        raise NotFound(
            f"{dataset.shard_url(shard)}, shard {shard} of {dataset.store.url}, is gone; restore it, or rebuild it "
            f"with `pipeline repair`"
        ) from error
    if num_bytes != about["num_bytes"]:
        raise CorruptShard(
            f"{dataset.shard_url(shard)} has {num_bytes:,} bytes, its manifest says {about['num_bytes']:,}; check it "
            f"with `pipeline verify`, rebuild it with `pipeline repair`"
        )


def picture_name(dataset: Dataset, address: Address) -> str:
    """Return the name of the file that a picture came from, or its key where the dataset does not say."""
    return str(dataset.read_about(address).get("source") or dataset.sample(address)["key"])


def read_picture(dataset: Dataset, address: Address) -> bytes:
    """Read the bytes of a picture and check that they are the fingerprinted ones.

    Raises:
        CorruptShard: Their digest differs from the sidecar's.
    """
    data = dataset.read_image(address)
    if image_digest(data) != dataset.sample(address)["digest"]:
        raise CorruptShard(
            f"{dataset.shard_url(address.shard)}, row {address.row}: the picture is not the fingerprinted one; "
            f"check it with `pipeline verify`, rebuild the shard with `pipeline repair`"
        )
    return data

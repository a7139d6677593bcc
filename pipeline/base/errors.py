"""Every error a user can meet, in one tree.

BitError
  ConfigError            a value the user gave is wrong
  StorageError           storage refused or failed
    NotFound             no such object, bucket or folder
      NoBucket           no such bucket
    Denied               credentials are wrong or lack a right
    Unreachable          no answer, or a temporary failure that outlived its retries
    StorageFull          no space left
    Conflict             the object exists with other content, or was changed by another writer
    Fenced               another run has taken over this destination
  DataError              the data is not what its manifest says, or cannot be used
    BadImage             one image cannot be used; carries a machine-readable reason
    EmptySource          nothing to do
    TooManyRejects       more bad images than the configured limit
    CorruptShard         a shard's bytes differ from the manifest
  TrainError             training cannot go on
    NonFinite            loss or gradient is NaN or infinite
    ResumeMismatch       the run to resume was started with another configuration
    Interrupted          somebody asked the run to stop; its state is saved
  ServiceError           a server or a cluster job did not start or failed
    ClusterLost          the cluster lost what ran the job; started again, it goes on

A message says what is wrong, which value, where, and what to do next.
"""


class BitError(Exception):
    """Base of all errors with a message for the user."""


class ConfigError(BitError):
    """A value the user gave is wrong."""


class StorageError(BitError):
    """Storage refused or failed."""


class NotFound(StorageError):  # noqa: N818 - the names read as facts in except clauses
    """No such object, bucket or folder."""


class NoBucket(NotFound):
    """No such bucket."""


class Denied(StorageError):  # noqa: N818
    """Credentials are wrong or lack a right."""


class Unreachable(StorageError):  # noqa: N818
    """No answer, or a temporary failure that outlived its retries."""


class StorageFull(StorageError):  # noqa: N818
    """No space is left where the data should go."""


class Conflict(StorageError):  # noqa: N818
    """The object exists with other content, or another writer changed it meanwhile."""


class Fenced(StorageError):  # noqa: N818
    """Another run has taken over this destination; what this one committed is part of its result."""


class DataError(BitError):
    """The data is not what its manifest says, or cannot be used."""


class BadImage(DataError):  # noqa: N818
    """One image cannot be used.

    Attributes:
        reason: Short machine-readable word: one of those in docs/sharding.md.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["BadImage"], tuple[str, str]]:
        return BadImage, (self.reason, self.detail)


class EmptySource(DataError):  # noqa: N818
    """A source holds no image."""


class TooManyRejects(DataError):  # noqa: N818
    """More images were rejected than the configured limit allows."""


class CorruptShard(DataError):  # noqa: N818
    """The bytes of a shard or sidecar differ from what the manifest says."""


class TrainError(BitError):
    """Training cannot go on."""


class NonFinite(TrainError):  # noqa: N818
    """Loss or gradient is NaN or infinite."""


class ResumeMismatch(TrainError):  # noqa: N818
    """The run to resume was started with another configuration."""


class Interrupted(TrainError):  # noqa: N818
    """Somebody asked the run to stop; its state is saved."""


class ServiceError(BitError):
    """A server or a cluster job did not start or failed."""


class ClusterLost(ServiceError):  # noqa: N818
    """The cluster lost what ran the job; started again, the job goes on."""

"""Checkpoints that are written while training goes on: the loop waits for a copy in memory, not for the store."""

import logging
import threading
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pipeline.base.errors import BitError, NotFound, Unreachable
from pipeline.store.base import Store
from pipeline.store.lease import Lease
from trainer.checkpoint.chunks import Part, own_parts
from trainer.checkpoint.record import CheckpointFile, UnreportedFigures
from trainer.checkpoint.retention import Retention, discard_old
from trainer.checkpoint.sharded import commit, files_listed, folder_of, list_key, write_parts
from trainer.step.ranks import World

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2
_MOMENT_SECONDS = 5.0
_READERS = 16  # of the lists of other ranks at once; a choice
_MOST_FAILED = 3  # checkpoints in a row that an outage took; a choice: each has waited for the store for minutes
_MOST_SECONDS = 1800.0  # for the slowest rank after rank 0 is done; a choice: longer than any outage that is survived


class BackgroundSaver:
    """Writes one checkpoint at a time, in a thread of each rank; the ranks meet in the store, not in collectives.

    Each rank copies what it is to write, and no more; its thread streams that to the store and lists it last. Rank 0's
    thread waits for all lists and commits. What a thread fails with is raised by the next call.
    """

    def __init__(self, store: Store, world: World, attempt: str, lease: Lease | None, retention: Retention) -> None:
        """Write below a store.

        Args:
            store: The run's store.
            world: This rank.
            attempt: Name of this start of the run, the same on every rank.
            lease: The right to commit; None on other ranks than 0.
            retention: Which checkpoints to keep.
        """
        self._store, self._world, self._attempt, self._lease = store, world, attempt, lease
        self._retention = retention
        self._memory: dict[tuple[str, int], Tensor] = {}
        self._most_seconds = _MOST_SECONDS
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._num_failed = 0
        self._figures = {"checkpoint_stall_seconds": 0.0}

    def start(
        self,
        state: dict[str, Tensor],
        *,
        step: int,
        stream: Mapping[str, Any],
        about: Mapping[str, Any],
        unreported: tuple[UnreportedFigures, ...] = (),
        best: Collection[int] = (),
        is_final: bool = False,
    ) -> None:
        """Copy this rank's share of a state, and begin to write it; waits for the checkpoint before.

        Args:
            state: Tensors by name, the same names on every rank.
            step: Optimizer steps done.
            stream: State of the data stream.
            about: Facts for whoever loads the weights.
            unreported: What the ranks measured since the last row of metrics.
            best: Steps whose checkpoints stay, whatever the retention says.
            is_final: Whether nothing changes the state before it is written: then it is not copied.

        Raises:
            BitError: The checkpoint before could not be written, and not because the store did not answer; or that
                happened too often in a row.
        """
        began = time.monotonic()
        self._pass_over_outage()
        parts = own_parts(state, self._world.rank, self._world.num_ranks)
        if not is_final:
            parts = [self._copied(part) for part in parts]
        work = (parts, step, dict(stream), dict(about), unreported, best, began)
        self._thread = threading.Thread(target=self._run, args=work, name=f"checkpoint-{step}", daemon=True)
        self._thread.start()
        self._figures["checkpoint_stall_seconds"] += time.monotonic() - began

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is there.

        Raises:
            BitError: It could not be written.
        """
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._error:
            error, self._error = self._error, None
            raise error

    @property
    def has_failed(self) -> bool:
        """Whether this rank could not write its share of the last checkpoint."""
        return self._error is not None

    def _pass_over_outage(self) -> None:
        """Wait as `wait` does; a checkpoint that the store did not take from rank 0 is let go for the next one.

        Rank 0 would wait for the share of another rank; that one ends the group, which starts again.
        """
        try:
            self.wait()
        except Unreachable as error:
            self._num_failed += 1
            if self._num_failed >= _MOST_FAILED or not self._world.is_first:
                raise
            logger.warning("a checkpoint was not stored (%s); the state of now is stored instead", error)
        else:
            self._num_failed = 0

    def abandon(self) -> None:
        """End soon: finish what this rank writes, and wait only a moment for other ranks, one of which may be dead."""
        self._most_seconds = _MOMENT_SECONDS
        with suppress(BitError):  # whoever abandons a run has another error to report
            self.wait()

    def take_figures(self) -> dict[str, float]:
        """Return what saving took since the last call.

        Returns:
            `checkpoint_stall_seconds` for which the loop waited; and where one was committed, on rank 0,
            its `checkpoint_step`, `checkpoint_seconds` from its copy to its commit and `checkpoint_bytes` of all its
            files.
        """
        figures, self._figures = self._figures, {"checkpoint_stall_seconds": 0.0}
        return {name: round(value, 4) for name, value in figures.items()}

    def _copied(self, part: Part) -> Part:
        """Return a part whose values no later step changes, in CPU memory that is used again for each checkpoint."""
        held = self._memory.get((part.name, part.start))
        if held is None or held.shape != part.rows.shape or held.dtype != part.rows.dtype:
            held = self._memory[part.name, part.start] = torch.empty(
                part.rows.shape, dtype=part.rows.dtype, device="cpu"
            )
        held.copy_(part.rows)
        return part._replace(rows=held)

    def _run(
        self,
        parts: list[Part],
        step: int,
        stream: dict[str, Any],
        about: dict[str, Any],
        unreported: tuple[UnreportedFigures, ...],
        best: Collection[int],
        began: float,
    ) -> None:
        try:
            folder = folder_of(step, self._attempt)
            files = write_parts(self._store, folder, self._world.rank, parts)
            if self._world.is_first:
                others = self._files_of_others(folder)
                if self._lease:
                    self._lease.check(now=True)
                commit(self._store, step, folder, [*files, *others], stream, about, unreported)
                self._figures["checkpoint_seconds"] = time.monotonic() - began
                self._figures["checkpoint_step"] = step
                self._figures["checkpoint_bytes"] = sum(file.num_bytes for file in [*files, *others])
                discard_old(self._store, self._retention, best)
        except BaseException as error:  # noqa: BLE001 - raised by the next call, in the loop's own thread
            self._error = error

    def _files_of_others(self, folder: str) -> list[CheckpointFile]:
        """Wait for the lists of all other ranks: of 512 one after the other would take as many answers of the store."""
        with ThreadPoolExecutor(_READERS, thread_name_prefix="lists") as threads:
            found = threads.map(lambda rank: self._files_of(folder, rank), range(1, self._world.num_ranks))
            return [file for files in found for file in files]

    def _files_of(self, folder: str, rank: int) -> list[CheckpointFile]:
        """Wait for the list of a rank's chunks, and return its files."""
        began = time.monotonic()
        while True:
            try:
                return files_listed(rank, self._store.read(list_key(folder, rank)))
            except NotFound as error:
                if time.monotonic() - began > self._most_seconds:
                    raise Unreachable(
                        f"rank {rank} did not write its part of {self._store.url}/{folder} within "
                        f"{self._most_seconds:.0f} s; the checkpoint before it stays the newest"
                    ) from error
                time.sleep(_LOOK_SECONDS)

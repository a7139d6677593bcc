"""Training on 1, 2 and 4 ranks with kills in between: a ledger shows that each epoch held each sample exactly once.

Run as `python -m tests.trainer.run.test_ledger DATA` it is the other side: it forks the ranks of each attempt, so that
torch is imported once. A rank takes real optimizer steps through torch.distributed and writes down what each one used.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist

from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.image.transforms import PretrainView
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import LoaderConfig, Stream
from tests.processes import is_running, running_children
from tests.waiting import wait_until
from trainer.model.build import new_model
from trainer.step.losses import LOSSES
from trainer.step.optimizer import MasterOptimizer
from trainer.step.ranks import World, distributed, gather
from trainer.step.step import train_step
from trainer.step.tensors import to_device

ORDER = OrderConfig(seed=4, batch_size=12, num_lanes=4, window_blocks=2)
NUM_STEPS = 24  # of 90 samples: three epochs and a bit
CHECKPOINT_EVERY = 3
# Ranks and loader workers of each attempt; all but the last are killed.
ATTEMPTS = ((1, 0), (2, 1), (4, 0), (1, 1), (4, 0), (2, 0))


class Use(NamedTuple):
    """One line of the ledger."""

    step: int
    source: int
    epoch: int
    shard: int
    row: int


# The ranks


def train(world: World, num_workers: int, data: str, out: Path, attempt: int) -> None:
    torch.set_num_threads(1)
    dataset = open_dataset(data)
    model = new_model("R14x0.5", dataset.version.num_classes, 0)
    optimizer = MasterOptimizer(model, 0.9, 1e-4)
    loader = LoaderConfig(num_workers=num_workers)
    stream = Stream(
        Selection(dataset), ORDER, PretrainView(32), rank=world.rank, num_ranks=world.num_ranks, loader=loader
    )  # fmt: skip
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        for name, value in optimizer.state().items():
            value.copy_(saved["training"][name])
        stream.load_state_dict(saved["stream"])
    first_step = stream.state_dict()["step"]
    module = distributed(world, model)
    ledger = os.open(out / f"ledger-{attempt}-{world.rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(ledger, f"from {first_step} of {world.num_ranks}\n".encode())
    for step in range(first_step, NUM_STEPS):
        batch = next(stream)
        share = len(batch.labels) * world.num_ranks / ORDER.batch_size
        tensors = to_device(batch, dataset.version.num_classes, world.device)
        train_step(module, optimizer, tensors, LOSSES["softmax"], 0.01, 64, share=share)
        lines = "".join(" ".join(map(str, (step, *place))) + "\n" for place in batch.places.tolist())
        os.write(ledger, lines.encode())
        if (step + 1) % CHECKPOINT_EVERY == 0:
            states = gather(world, stream.state_dict())  # all ranks have written down this step
            assert states == [states[0]] * world.num_ranks
            if world.is_first:
                state = {"training": optimizer.state(), "stream": states[0]}
                torch.save(state, out / "new.pt")
                (out / "new.pt").rename(checkpoint)
    stream.close()
    gather(world, 0)
    os.write(ledger, b"finished\n")


def fork_rank(rank: int, num_ranks: int, num_workers: int, data: str, out: Path, attempt: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if num_ranks > 1:
            dist.init_process_group("gloo", f"file://{out}/group-{attempt}", rank=rank, world_size=num_ranks)
        train(World(rank, num_ranks, torch.device("cpu")), num_workers, data, out, attempt)
        code = 0
    finally:
        os._exit(code)


def main(data: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead leave at once
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        out, *numbers = line.split()
        attempt, num_ranks, num_workers = map(int, numbers)
        pids = [fork_rank(rank, num_ranks, num_workers, data, Path(out), attempt) for rank in range(num_ranks)]
        sys.stdout.write(" ".join(map(str, pids)) + "\n")
        sys.stdout.flush()


# The test


Start = Callable[[Path, int, int, int], list[int]]


@pytest.fixture
def start(small_dataset: Dataset) -> Iterator[Start]:
    """Start an attempt; return the processes of its ranks."""
    command = [sys.executable, "-m", "tests.trainer.run.test_ledger", small_dataset.store.url]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as forker:
        assert forker.stdin
        assert forker.stdout
        assert forker.stdout.readline() == "ready\n"

        def begin(out: Path, attempt: int, num_ranks: int, num_workers: int) -> list[int]:
            forker.stdin.write(f"{out} {attempt} {num_ranks} {num_workers}\n")  # type: ignore[union-attr]
            forker.stdin.flush()  # type: ignore[union-attr]
            return list(map(int, forker.stdout.readline().split()))  # type: ignore[union-attr]

        try:
            yield begin
        finally:
            for child in running_children(forker.pid, ""):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            forker.kill()


def written(out: Path, attempt: int, num_ranks: int) -> list[list[str]]:
    """Return the lines of each rank of an attempt."""
    paths = [out / f"ledger-{attempt}-{rank}" for rank in range(num_ranks)]
    return [path.read_text().splitlines() if path.exists() else [] for path in paths]


def last_step(out: Path, attempt: int, num_ranks: int) -> int:
    """Return the last step that a rank has written down in an attempt; -1 before the first."""
    lines = [rank[-1] for rank in written(out, attempt, num_ranks) if rank]
    return max((int(line.split()[0]) for line in lines if line[0].isdigit()), default=-1)


def has_reached(out: Path, attempt: int, num_ranks: int, step: int) -> bool:
    return last_step(out, attempt, num_ranks) >= step


def are_gone(pids: list[int]) -> bool:
    return not any(map(is_running, pids))


def finish(out: Path, attempt: int, pids: list[int]) -> None:
    wait_until(partial(are_gone, pids), "the ranks to end")
    assert all(lines[-1] == "finished" for lines in written(out, attempt, len(pids)))


def effective(out: Path, attempts: list[int]) -> list[list[Use]]:
    """Return what each step used in the end, ranks in order: an attempt overrides all from where it went on."""
    steps: dict[int, list[Use]] = {}
    for attempt, num_ranks in enumerate(attempts):
        for rank, lines in enumerate(written(out, attempt, num_ranks)):
            if not lines:
                continue  # killed before it began
            _, first_step, _, told_ranks = lines[0].split()
            assert int(told_ranks) == num_ranks
            for step in [step for step in steps if step >= int(first_step) and rank == 0]:
                del steps[step]
            for line in lines[1:]:
                if line != "finished":
                    use = Use(*map(int, line.split()))
                    steps.setdefault(use.step, []).append(use)
    assert sorted(steps) == list(range(NUM_STEPS))
    return [steps[step] for step in range(NUM_STEPS)]


def test_through_kills_on_1_2_and_4_ranks_every_epoch_holds_each_sample_once(start: Start, tmp_path: Path) -> None:
    chance = random.Random(7)
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    calm.mkdir()
    killed.mkdir()
    undisturbed = start(calm, 0, 1, 0)
    reached: list[int] = []
    for attempt, (num_ranks, num_workers) in enumerate(ATTEMPTS):
        pids = start(killed, attempt, num_ranks, num_workers)
        if attempt == len(ATTEMPTS) - 1:
            finish(killed, attempt, pids)
            break
        target = min(NUM_STEPS - 2, max(reached, default=-1) + chance.randint(1, 5))
        wait_until(partial(has_reached, killed, attempt, num_ranks, target), f"step {target}")
        time.sleep(chance.uniform(0, 0.1))  # the point: a random moment
        chance.shuffle(pids)
        os.kill(pids[0], signal.SIGKILL)
        time.sleep(chance.choice((0, 0.1)))  # the point: the others go on without it for a moment, or fail
        for pid in pids[1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(partial(are_gone, pids), "the killed ranks to end")
        reached.append(last_step(killed, attempt, num_ranks))
    finish(calm, 0, undisturbed)

    ranks = [num_ranks for num_ranks, _ in ATTEMPTS]
    uses = effective(killed, ranks)
    assert [len(step) for step in uses] == [ORDER.batch_size] * NUM_STEPS
    by_epoch: dict[int, Counter[tuple[int, int]]] = {}
    for use in chain.from_iterable(uses):
        by_epoch.setdefault(use.epoch, Counter())[use.shard, use.row] += 1
    for epoch in range(3):
        assert len(by_epoch[epoch]) == 90
        assert set(by_epoch[epoch].values()) == {1}
    assert uses == effective(calm, [1])
    # The kills were real: steps were taken, lost, and taken again.
    firsts = [int(written(killed, attempt, 1)[0][0].split()[1]) for attempt in range(len(ATTEMPTS))]
    assert firsts[-1] > 0
    assert sum(last + 1 - first for last, first in zip(reached, firsts[1:], strict=True)) > 0
    # The sums of a gradient are rounded in another order on another number of ranks, and steps amplify it.
    calm_weights, weights = (_flat(torch.load(out / "checkpoint.pt")["training"]) for out in (calm, killed))
    assert torch.linalg.vector_norm(weights - calm_weights) < 0.01 * torch.linalg.vector_norm(calm_weights)


def _flat(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for name, tensor in state.items() if name.startswith("model/")])


if __name__ == "__main__":
    main(sys.argv[1])

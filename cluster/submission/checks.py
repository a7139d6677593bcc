"""What would keep a job of the trainer from running is found before it is submitted."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any, NamedTuple

from pipeline.base.errors import ConfigError, ServiceError

COMMANDS = ("pretrain", "finetune", "evaluate")
# Parameters of these commands that name a place, by their names in the code.
_PLACES = ("data", "out", "train", "test", "run_url", "init", "branch", "exclude", "exclude_test")
_NO_PLACES = ("scratch",)
# Those that can say all without starting anything.
_DRY = ("pretrain",)


class Wanted(NamedTuple):
    """What a job of the trainer is to do, as far as the cluster is concerned.

    Attributes:
        out: URL of what it writes.
        num_workers: At least.
        use_gpu: Whether a worker takes a GPU, or a CPU.
        waits: Whether it waits for room.
    """

    out: str
    num_workers: int
    use_gpu: bool
    waits: bool


def checked_command(name: str, arguments: Sequence[str]) -> Wanted:
    """Return what a command wants, after checking that it could run.

    Args:
        name: One of COMMANDS.
        arguments: All that follows it.

    Raises:
        click.UsageError: An option is wrong.
        BitError: As the command itself.
    """
    from trainer.cli import cli  # noqa: PLC0415

    command = cli.commands[name]
    context = command.make_context(f"trainer {name}", list(arguments))
    relative = [place for place in _places(context.params) if place and not _is_whole(place)]
    if relative:
        raise ConfigError(
            f"{relative[0]} is relative to a folder of this machine, and the job runs on another one: give a URL, or "
            f"a whole path that every node has"
        )
    workers = context.params["workers"]
    if not workers.most:
        raise ConfigError("--workers 0 runs without Ray; give a job at least one worker, or run `trainer` here")
    if name in _DRY:
        with redirect_stdout(StringIO()):
            command.main([*arguments, "--dry-run"], prog_name=f"trainer {name}", standalone_mode=False)
    return Wanted(context.params["out"], workers.least, context.params["use_gpu"], context.params["wait"])


def require_room(wanted: Wanted, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a job for which the cluster is too small, even with nothing else on it.

    Args:
        wanted: Of the job.
        nodes: Resources of each node that is alive, as Ray has them.

    Raises:
        ServiceError: Names what is missing.
    """
    kind = "GPU" if wanted.use_gpu else "CPU"
    has = sum(int(node.get(kind, 0)) for node in nodes)
    if has < wanted.num_workers and not wanted.waits:
        raise ServiceError(
            f"the job takes {wanted.num_workers} {kind}s, one for each worker, and the cluster has {has} on "
            f"{len(nodes)} nodes; give fewer --workers, add nodes, or let it wait for them with --wait"
        )


def _places(params: Mapping[str, Any]) -> Iterator[str]:
    """Yield the places that the parameters of a command name."""
    yield from (params.get(name) or "" for name in _PLACES)
    for mixed in params.get("mixed", ()):
        yield mixed.rpartition("=")[0]
    for probe in params.get("probes", ()):
        yield from probe.partition("=")[2].rpartition(",")[::2]
    held_out = params.get("held_out") or ""
    if not held_out.removesuffix("%").replace(".", "", 1).isdigit():  # else a number or a share
        yield held_out


def _is_whole(place: str) -> bool:
    return place.startswith("/") or "://" in place or place in _NO_PLACES


def resources(address: str) -> list[dict[str, Any]]:
    """Return the resources of each node of a cluster that is alive.

    Args:
        address: URL of its job API.

    Raises:
        ServiceError: It does not say.
    """
    from ray.util.state import list_nodes  # noqa: PLC0415 - seconds
    from ray.util.state.exception import RayStateApiException  # noqa: PLC0415

    try:
        return [node.resources_total for node in list_nodes(address=address) if node.state == "ALIVE"]
    except RayStateApiException as error:
        raise ServiceError(f"the cluster at {address} does not say which nodes it has: {error}") from error

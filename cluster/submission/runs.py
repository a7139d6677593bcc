"""How the training runs of a cluster's jobs stand, from their folders."""

import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import click

from pipeline.base.errors import BitError, NotFound

_COMMAND = "pretrain"
_NUM_RUNS = 20  # the newest; each is read from the store
_ANSWER_SECONDS = 20.0


def run_lines(jobs: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return by job how its training run stands; of jobs of one run only the newest job.

    Args:
        jobs: With `job` and `command`, oldest first.
    """
    newest = {url: each["job"] for each in jobs if (url := run_of(each["command"]))}
    chosen = list(newest)[-_NUM_RUNS:]
    lines: dict[str, str] = {}
    # Threads that nobody waits for: a store that this machine cannot reach is tried again for minutes.
    threads = [
        threading.Thread(target=lambda url=url: lines.update({url: run_line(url)}), daemon=True) for url in chosen
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + _ANSWER_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {newest[url]: lines.get(url, f"{url}: its store does not answer") for url in chosen}


def run_of(command: str) -> str | None:
    """Return the URL of the run that a job of the trainer makes, by its command line; None for other jobs."""
    with suppress(ValueError, click.ClickException):
        words = shlex.split(command)
        place = words.index(_COMMAND)
        if not any(word.rpartition("/")[2] == "trainer" or "supervise" in word for word in words[:place]):
            return None
        from trainer.cli import cli  # noqa: PLC0415

        context = cli.commands[_COMMAND].make_context(_COMMAND, words[place + 1 :], resilient_parsing=True)
        out = context.params.get("out")
        return out if out and (out.startswith("/") or "://" in out) else None
    return None


def run_line(url: str) -> str:
    """Return in a line how a run stands, or why that cannot be read."""
    from pipeline.base.quantities import human_seconds  # noqa: PLC0415
    from pipeline.store.url import open_store  # noqa: PLC0415
    from trainer.watching.facts import RunReader  # noqa: PLC0415
    from trainer.watching.state import state_of  # noqa: PLC0415

    try:
        facts = RunReader(open_store(url)).read()
    except NotFound:
        return f"{url}: nothing yet"
    except BitError as error:
        return f"{url}: {error}"
    state = state_of(facts, time.time())
    line = (
        f"{url}: {state.word}, step {state.step:,} of {state.num_steps:,}"
        if state.num_steps
        else f"{url}: {state.word}"
    )
    if state.word == "training":
        line += f", {state.images_per_second:,.0f} images/s, {human_seconds(state.eta_seconds)} left"
    if state.word == "silent":
        line += f", no sign of life for {human_seconds(state.silent_seconds)}"
    if facts.failures:
        last = facts.failures[-1]
        ago = human_seconds(time.time() - last["time"])
        line += f"; last error {ago} ago: {str(last['message']).splitlines()[0]}"
    return line

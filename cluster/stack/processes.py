"""Starting and stopping processes reliably: by pid and start time, with all descendants, without interruption."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

from pipeline.base.errors import ServiceError

_STOP_SECONDS = 4.0  # SeaweedFS takes 2.2 s
_SAME_START_SECONDS = 1.0
# Pid and start time: a pid alone may belong to another process after a reboot.
Identity = tuple[int, float]


def end_by_signals() -> None:
    """Make SIGTERM and a closed terminal end this process like Ctrl-C, so that what it started is stopped."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


@contextmanager
def unstoppable() -> Iterator[None]:
    """Ignore further signals while services are stopped: a second Ctrl-C must leave nothing behind."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def identities(started: Sequence[subprocess.Popen[bytes]]) -> tuple[Identity, ...]:
    """Return the identities of the processes, the last started first; those that have ended are left out."""
    found = (_process(process.pid) for process in reversed(started))
    return tuple((process.pid, process.create_time()) for process in found if process)


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def is_alive(identity: Identity) -> bool:
    """Whether the process runs; its pid alone may belong to another one."""
    pid, created = identity
    process = _process(pid)
    try:
        return bool(
            process
            and process.status() != psutil.STATUS_ZOMBIE
            and abs(process.create_time() - created) < _SAME_START_SECONDS
        )
    except psutil.NoSuchProcess:
        return False


def stop_all(processes: Sequence[Identity], belongs: Callable[[psutil.Process], bool]) -> None:
    """Stop the processes in order by SIGTERM, then kill their descendants and all other processes that belong to them.

    Args:
        processes: First process of each service. One whose pid was given to another process is left alone.
        belongs: Whether a process of this machine is to be killed, too.
    """
    leaders = [
        process
        for pid, created in processes
        if (process := _process(pid)) and abs(process.create_time() - created) < _SAME_START_SECONDS
    ]
    # Descendants are listed first: they lose their parent when a service ends.
    members = {child for leader in leaders for child in _family(leader)}
    members |= set(filter(belongs, psutil.process_iter()))
    for leader in leaders:
        _signal(leader, signal.SIGTERM)
        psutil.wait_procs([leader], timeout=_STOP_SECONDS)
    for process in members:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(members, timeout=_STOP_SECONDS)


def _family(leader: psutil.Process) -> list[psutil.Process]:
    try:
        return [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def launch(command: list[str], log: Path, environment: Mapping[str, str], umask: int = -1) -> subprocess.Popen[bytes]:
    """Start a service in a session of its own: Ctrl-C reaches only the caller, which stops its services in order.

    Args:
        command: Its command line.
        log: For what it prints.
        environment: All of it.
        umask: Of the files it makes; that of this process by default.
    """
    with log.open("wb") as sink:
        return subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            umask=umask,
        )


def beside_python(name: str) -> str:
    """Return the path of a command that this environment brings.

    Raises:
        ServiceError: It does not.
    """
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise ServiceError(f"{path} is missing; install bit-pretrain into this environment with `pip install .`")
    return str(path)


def commands_first() -> str:
    """Return a PATH that has the commands of this environment first, activated or not; cron and units may have none."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def carries(name: str, value: str) -> Callable[[psutil.Process], bool]:
    """Return a predicate: whether another process has inherited an environment variable with that value."""

    def is_carrier(process: psutil.Process) -> bool:
        try:
            inherited = process.environ().get(name)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False
        return bool(process.pid != os.getpid() and inherited == value)

    return is_carrier

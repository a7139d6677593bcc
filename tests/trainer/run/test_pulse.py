"""The phases that a rank shows: a step is not called long before it is known how long steps are."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.dataset.dataset import Dataset
from tests.trainer.runs import config
from trainer.jobs.pretrain import pretrain
from trainer.run.controls import Controls
from trainer.run.drain import DrainDeadline
from trainer.run.pulse import Pulse
from trainer.step.ranks import alone


def test_steps_count_as_the_start_until_one_was_measured(small_dataset: Dataset, tmp_path: Path) -> None:
    pulse, seen = Pulse(0), []

    def on_phase(phase: str) -> None:
        pulse.on_phase(phase)
        if phase in {"start", "step"}:
            seen.append((phase, pulse.life().step_seconds > 0))

    controls = Controls(on_phase=on_phase, on_step=pulse.on_step)
    pretrain(config(small_dataset, tmp_path), alone(), lambda row: None, controls)
    assert {phase for phase, is_measured in seen if not is_measured} == {"start"}
    assert ("step", True) in seen


_STOPPED = """
import sys, time
from pathlib import Path
from pipeline.store.local import LocalStore
from trainer.run import pulse as module
from trainer.run.board import BoardState

module._SIGN_SECONDS, module._STOPPED_SECONDS = 0.1, 1.0
pulse = module.Pulse(0)
with module.beating(pulse, BoardState(3.0).sign, LocalStore(Path(sys.argv[1]))):
    pulse.on_phase("step")
    print("in a step", flush=True)
    sys.stdin.readline()  # stopped meanwhile for longer than a step may take
    time.sleep(0.5)
print("done")
"""


def test_a_process_that_was_stopped_is_not_called_stuck_when_it_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _STOPPED, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "in a step\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(4.0)
        process.send_signal(signal.SIGCONT)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.read() == "done\n"
    assert process.returncode == 0
    assert not (tmp_path / "stalls").exists()


def test_a_drain_without_a_deadline_has_one_from_when_it_is_seen_first(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.train  # noqa: PLC0415 - two seconds that the others need not pay

    told: list[SimpleNamespace | None] = [None]
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: told[0])
    deadline = DrainDeadline()
    assert deadline() is None
    told[0] = SimpleNamespace(deadline_ms=None)
    first = deadline()
    assert first is not None
    assert deadline() == first
    told[0] = SimpleNamespace(deadline_ms=2_000)
    assert deadline() == 2.0
    told[0] = None
    assert deadline() is None

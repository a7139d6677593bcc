"""The phases that a rank shows: a step is not called long before it is known how long steps are."""

from pathlib import Path

from pipeline.dataset.dataset import Dataset
from tests.trainer.runs import config
from trainer.jobs.pretrain import pretrain
from trainer.run.controls import Controls
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

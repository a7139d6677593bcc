"""A driver that is started again need not wait for what Ray holds free for the dead one's workers."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys
import ray
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ResourceRequestPriority
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.train.v2._internal.execution.context import TrainRunContext
from pipeline.store.url import open_store
from trainer.run.reservations import RecordReservation, give_back

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
coordinator, out = get_or_create_autoscaling_coordinator(), sys.argv[1]
store = open_store(out)

def group(run_id, num_workers):
    asked = coordinator.request_resources.remote(
        f"train-{run_id}", [{"CPU": 1}] * num_workers, 180.0, priority=ResourceRequestPriority.HIGH
    )
    ray.get(asked)
    nodes = ray.get(coordinator.get_reserved_resources.remote(f"train-{run_id}"))
    return sum(node.get("CPU", 0) for node in nodes.values())

dead = object.__new__(TrainRunContext)
object.__setattr__(dead, "run_id", "dead")
first = group("dead", 2)  # its controller is killed: nobody cancels it
RecordReservation(out).after_controller_start(dead)
blocked = group("next", 2)
give_back(store)
print(json.dumps([first, blocked, group("next", 2), [entry.key for entry in store.list("reservations/")]]))
"""


def test_what_a_dead_group_asked_ray_for_is_given_back(tmp_path: Path) -> None:
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # other tests may have a cluster
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [2, 0, 2, []]

"""Run folders written by hand, with all that a run of months writes down."""

import json
import math
from typing import Any

from pipeline.store.base import Store
from trainer.run.metrics import write_metrics

BEGAN = 1_700_000_000.0
CONFIG = {"model": "R50x1", "out": "", "data": "s3://bucket/i21k", "recipe": {"batch_size": 512, "epochs": 90}}


def row(attempt: str, step: int, time: float, num_steps: int = 1000) -> dict[str, Any]:
    return {
        "attempt": attempt,
        "time": time,
        "step": step,
        "num_steps": num_steps,
        "epoch": step / 100,
        "loss": 2 + 5 * math.exp(-step / 300) + 0.1 * math.sin(step),
        "accuracy": 0.7 * (1 - math.exp(-step / 300)),
        "gradient_norm": 1.5,
        "learning_rate": 0.03 if step < 600 else 0.003,
        "images_per_second": 512.0 + step % 7,
        "data_wait_fraction": 0.02,
        "limiting_stage": "the consumer",
        "checkpoint_stall_seconds": 0.1,
        "eta_seconds": num_steps - step,
    }


def start(store: Store, attempt: str, first_step: int, time: float, num_ranks: int) -> None:
    ranks = [{"rank": rank, "host": f"node{rank // 2}", "gpu": "NVIDIA H100 80GB HBM3"} for rank in range(num_ranks)]
    body = {"attempt": attempt, "first_step": first_step, "time": time, "packages": {"torch": "2.13.0"}}
    store.create(f"attempts/{first_step:09d}-{attempt}.json", json.dumps(body | {"ranks": ranks}).encode())
    store.create(f"failures/aaaa/starts/{round((time - 10) * 1e9)}.json", b'{"progress": []}')


def write_run(store: Store, last_step: int = 1000) -> float:
    """Write a run that was killed at step 430, was resized at 700 and was changed at 600; return when it ended."""
    store.create("run.json", json.dumps(CONFIG).encode())
    now, steps = BEGAN, {"a": (0, 430), "b": (400, 700), "c": (700, last_step)}
    for attempt, (first, last) in steps.items():
        now += 20.0
        start(store, attempt, first, now, 2 if attempt == "c" else 4)
        rows = [
            row(attempt, step, now + 5 + (step - first)) for step in range(first + 10, min(last, last_step) + 1, 10)
        ]
        write_metrics(store, attempt, rows)
        now = rows[-1]["time"] if rows else now
        if attempt == "a":
            failure = {"rank": 3, "final": False, "message": "RuntimeError: NCCL error\nTraceback"}
            store.create(f"failures/aaaa/{round((now + 2) * 1e9)}-3.json", json.dumps(failure).encode())
            now += 30
        if attempt == "b":
            event = {"kind": "resized", "time": now, "step": 700, "ranks_before": 4, "ranks_after": 2}
            store.create(f"events/{round(now * 1e9)}-resized.json", json.dumps(event).encode())
            change = {"step": 600, "epochs_done": 6.0, "time": now - 100, "before": {"recipe.epochs": 90}}
            body = json.dumps(change | {"after": {"recipe.epochs": 100}}).encode()
            store.create("changes/0000-000000600.json", body)
        if last >= last_step:
            break
    for step in range(200, last_step + 1, 200):
        accuracy = 0.5 * (1 - math.exp(-step / 300))
        held_out = {"loss": 3.0, "accuracy": accuracy, "low": accuracy - 0.01, "high": accuracy + 0.01}
        held_out |= {"num_correct": round(accuracy * 5000), "num_test": 5000}
        evaluation = {"step": step, "time": BEGAN + step, "seconds": 4.0, "held_out": held_out}
        store.create(f"evaluations/{step:09d}.json", json.dumps(evaluation).encode())
    store.create(f"checkpoints/{last_step // 100 * 100:09d}.json", b"{}")
    return now

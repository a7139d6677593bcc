"""A model with the weights of a checkpoint."""

from torch import Tensor

from pipeline.base.errors import NotFound
from pipeline.store.base import Store
from trainer.checkpoint.fallback import load_newest
from trainer.checkpoint.record import CheckpointRecord, chosen, require_latest
from trainer.checkpoint.sharded import load
from trainer.model.build import new_model
from trainer.model.network import ResNetV2
from trainer.step.optimizer import AVERAGE, MasterOptimizer, model_state
from trainer.step.ranks import World

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of BatchNorm: averages by themselves


def load_model(store: Store, world: World, record: CheckpointRecord) -> ResNetV2:
    """Return the model of a checkpoint on this rank's device, ready for inference; every rank must call.

    Raises:
        CorruptShard: A file's content is not what the record says.
    """
    model = new_model(record.about["model"], record.about["num_classes"], seed=0, device=world.device)
    load(store, world, record, stored_names(record, model_state(model)))
    return model.eval()


def load_chosen_model(store: Store, world: World, step: int | None) -> tuple[ResNetV2, CheckpointRecord]:
    """Return the model of a step's checkpoint, or for None of the newest sound one, and its record.

    Raises:
        NotFound: There is no such checkpoint.
        CorruptShard: The one of the step is damaged, or all are.
    """
    about = chosen(store, step).about
    model = new_model(about["model"], about["num_classes"], seed=0, device=world.device)
    record = load_into(store, world, step, model_state(model))
    return model.eval(), record


def stored_names(record: CheckpointRecord, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a network's tensors by the names of what to fill them with: of a run with averages, those."""
    if not record.about.get("averaged"):
        return state
    return {
        name if name.endswith(_BUFFERS) else name.replace("model/", AVERAGE, 1): value for name, value in state.items()
    }


def training_state(record: CheckpointRecord, optimizer: MasterOptimizer) -> dict[str, Tensor]:
    """Return the tensors of an optimizer that a checkpoint can fill: without averages where it has none."""
    state = optimizer.state()
    if record.about.get("averaged"):
        return state
    return {name: value for name, value in state.items() if not name.startswith(AVERAGE)}


def load_into(store: Store, world: World, step: int | None, state: dict[str, Tensor]) -> CheckpointRecord:
    """Fill tensors from a step's checkpoint, or for None from the newest sound one, and return its record.

    Raises:
        NotFound: There is no such checkpoint.
        CorruptShard: The one of the step is damaged, or all are.
    """
    if step is not None:
        record = chosen(store, step)
        load(store, world, record, stored_names(record, state))
        return record
    require_latest(store)
    loaded = load_newest(store, world, lambda record: stored_names(record, state))
    if loaded is None:
        raise NotFound(f"{store.url} holds no checkpoint any more; another start may have removed it: try again")
    return loaded

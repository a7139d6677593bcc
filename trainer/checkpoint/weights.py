"""A model with the weights of a checkpoint."""

from torch import Tensor

from pipeline.base.errors import NotFound
from pipeline.store.base import Store
from trainer.checkpoint.fallback import load_newest
from trainer.checkpoint.record import CheckpointRecord, chosen, require_latest
from trainer.checkpoint.sharded import load
from trainer.model.build import new_model
from trainer.model.network import ResNetV2
from trainer.step.optimizer import model_state
from trainer.step.ranks import World


def load_model(store: Store, world: World, record: CheckpointRecord) -> ResNetV2:
    """Return the model of a checkpoint on this rank's device, ready for inference; every rank must call.

    Raises:
        CorruptShard: A file's content is not what the record says.
    """
    model = new_model(record.about["model"], record.about["num_classes"], seed=0, device=world.device)
    load(store, world, record, model_state(model))
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


def load_into(store: Store, world: World, step: int | None, state: dict[str, Tensor]) -> CheckpointRecord:
    """Fill tensors from a step's checkpoint, or for None from the newest sound one, and return its record.

    Raises:
        NotFound: There is no such checkpoint.
        CorruptShard: The one of the step is damaged, or all are.
    """
    if step is not None:
        record = chosen(store, step)
        load(store, world, record, state)
        return record
    require_latest(store)
    loaded = load_newest(store, world, lambda _: state)
    if loaded is None:
        raise NotFound(f"{store.url} holds no checkpoint any more; another start may have removed it: try again")
    return loaded

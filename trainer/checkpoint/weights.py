"""A model with the weights of a checkpoint."""

from pipeline.store.base import Store
from trainer.checkpoint.record import CheckpointRecord
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

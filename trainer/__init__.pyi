"""The public names of `trainer`: each is imported when it is first asked for."""

from .checkpoint.record import (
    CheckpointRecord as CheckpointRecord,
    require_latest as require_latest,
)
from .checkpoint.weights import load_model as load_model
from .jobs.config import (
    EvaluateConfig as EvaluateConfig,
    FinetuneConfig as FinetuneConfig,
    PretrainConfig as PretrainConfig,
)
from .jobs.evaluate import (
    evaluate as evaluate,
)
from .jobs.exchange import (
    export_weights as export_weights,
    import_weights as import_weights,
)
from .jobs.finetune import (
    finetune as finetune,
    read_results as read_results,
)
from .jobs.pretrain import (
    pretrain as pretrain,
)
from .model.architecture import (
    Architecture as Architecture,
    parse_architecture as parse_architecture,
)
from .model.build import new_model as new_model
from .model.network import ResNetV2 as ResNetV2
from .recipes.hyperrule import (
    TransferRecipe as TransferRecipe,
    finetune_learning_rate as finetune_learning_rate,
    hyperrule as hyperrule,
)
from .recipes.pretrain import (
    PretrainRecipe as PretrainRecipe,
    named_recipe as named_recipe,
    pretrain_learning_rate as pretrain_learning_rate,
)
from .run.history import read_config as read_config
from .run.metrics import read_metrics as read_metrics
from .scores.intervals import (
    paired_bootstrap as paired_bootstrap,
    wilson_interval as wilson_interval,
)
from .scores.linear_probe import few_shot_accuracies as few_shot_accuracies
from .step.ranks import (
    World as World,
    alone as alone,
)
from .tasks.few_shot import few_shot_rows as few_shot_rows

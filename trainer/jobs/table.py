"""The jobs that `trainer` launches, each with its configuration and its function."""

from trainer.jobs.evaluate import EvaluateConfig, evaluate
from trainer.jobs.finetune import FinetuneConfig, finetune, result_line
from trainer.jobs.pretrain import PretrainConfig, pretrain
from trainer.run.launch import Job
from trainer.run.progress import json_line, metrics_line

PRETRAIN = Job("pretrain", PretrainConfig, pretrain, metrics_line)
FINETUNE = Job("finetune", FinetuneConfig, finetune, result_line)
EVALUATE = Job("evaluate", EvaluateConfig, evaluate, json_line)

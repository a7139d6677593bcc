"""The jobs that `trainer` launches, each with its configuration and its function."""

from typing import Any

from trainer.jobs.config import EvaluateConfig, FinetuneConfig, InferenceConfig, PretrainConfig
from trainer.jobs.evaluate import evaluate, evaluation_lines
from trainer.jobs.finetune import finetune, result_line
from trainer.jobs.predict import infer, inference_lines
from trainer.jobs.pretrain import pretrain
from trainer.run.launch import Job
from trainer.run.progress import metrics_line

PRETRAIN = Job("pretrain", PretrainConfig, pretrain, metrics_line)
FINETUNE = Job("finetune", FinetuneConfig, finetune, result_line)
EVALUATE = Job("evaluate", EvaluateConfig, evaluate, evaluation_lines)
PREDICT = Job("predict", InferenceConfig, infer, inference_lines)
EMBED = Job("embed", InferenceConfig, infer, inference_lines)
JOBS: dict[str, Job[Any]] = {job.name: job for job in (PRETRAIN, FINETUNE, EVALUATE, PREDICT, EMBED)}

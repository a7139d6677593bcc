"""All studies, in the order of the paper."""

from collections.abc import Sequence

from pipeline.base.errors import ConfigError
from trainer.studies.paper.duplicates import DUPLICATES
from trainer.studies.paper.few_shot import FEW_SHOT
from trainer.studies.paper.model_and_data import MODEL_AND_DATA
from trainer.studies.paper.norms import NORMS
from trainer.studies.paper.random_search import RANDOM_SEARCH
from trainer.studies.paper.schedule import SCHEDULE
from trainer.studies.paper.upstream_size import UPSTREAM_SIZE
from trainer.studies.study import Study

STUDIES = {
    study.name: study for study in (UPSTREAM_SIZE, FEW_SHOT, NORMS, MODEL_AND_DATA, SCHEDULE, RANDOM_SEARCH, DUPLICATES)
}


def named_studies(names: Sequence[str]) -> list[Study]:
    """Return studies by name; `all` stands for all of them.

    Raises:
        ConfigError: There is none of a name.
    """
    if list(names) == ["all"]:
        return list(STUDIES.values())
    unknown = [name for name in names if name not in STUDIES]
    if unknown:
        raise ConfigError(
            f"there is no study {', '.join(unknown)}; there are {', '.join(STUDIES)}, or all of them: all"
        )
    return [STUDIES[name] for name in dict.fromkeys(names)]

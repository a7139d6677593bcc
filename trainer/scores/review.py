"""What people say of a model's mistakes: which ones they are asked about, and the accuracy that follows."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.base.errors import ConfigError
from pipeline.base.seeds import rng

# The label is right; the model is; neither is; both can be seen [paper 4.4: what its raters were asked].
VERDICTS = ("model wrong", "model right", "label wrong", "ambiguous")
_NUM_DRAWS = 2000
_PRIOR = 0.5  # Jeffreys: a verdict that was not given is not ruled out


def drawn_for_review(names: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """Return random mistakes to be judged, all of them if they are few; the same ones for the same names."""
    order = rng(seed, "review of mistakes").permutation(len(names))
    return [sorted(names)[place] for place in order[:count]]


def parse_verdicts(body: bytes, name: str) -> tuple[dict[str, str], str | None]:
    """Return the verdicts that a review sheet saved, by picture, and which sheet it was; None where that is not told.

    Raises:
        ConfigError: It is no such file, or a verdict is none of VERDICTS.
    """
    try:
        saved = json.loads(body)
        verdicts = {str(picture): str(verdict) for picture, verdict in saved["verdicts"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{name} holds no verdicts ({error!r}); give the file that review.html saves") from error
    for picture, verdict in verdicts.items():
        if verdict not in VERDICTS:
            raise ConfigError(f"{name}: {picture} has the verdict {verdict!r}; it must be one of {', '.join(VERDICTS)}")
    return verdicts, saved.get("sheet")


def corrected_accuracy(num_correct: int, num_test: int, verdicts: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Return the accuracy that verdicts on random mistakes imply.

    Where the model is right its prediction counts as correct; where neither is right the picture does not count.
    `accuracy` takes an ambiguous picture for a mistake, `lenient_accuracy` for a correct one. The intervals are those
    of the choice of pictures: 95 % of what the verdicts leave likely, narrowed for the share of the mistakes judged.

    Args:
        num_correct: Pictures that the model classifies as labelled.
        num_test: All pictures with a label.
        verdicts: Of mistakes that were drawn at random; at least one.
        seed: Key of the draws.

    Raises:
        ConfigError: There is no verdict, there are more than mistakes, or no picture is left to be right on.
    """
    num_wrong = num_test - num_correct
    if not 0 < len(verdicts) <= num_wrong:
        raise ConfigError(f"{len(verdicts)} verdicts on {num_wrong:,} mistakes: judge one or more of them")
    counts = Counter(verdicts)
    if counts["label wrong"] == num_test:
        raise ConfigError("by these verdicts the labels of all pictures are wrong: none is left to be right on")
    found = np.array([counts[verdict] for verdict in VERDICTS])
    shares = found / len(verdicts)
    draws = rng(seed, "shares of verdicts").dirichlet(found + _PRIOR, _NUM_DRAWS)
    narrowed = shares + (draws - shares) * np.sqrt((num_wrong - len(verdicts)) / max(1, num_wrong - 1))

    def accuracy(of_verdicts: Any, *, is_lenient: bool) -> Any:
        _, model, neither, ambiguous = np.moveaxis(num_wrong * of_verdicts, -1, 0)
        return (num_correct + model + (ambiguous if is_lenient else 0)) / (num_test - neither)

    result: dict[str, Any] = {
        "labelled_accuracy": num_correct / num_test,
        "num_wrong": num_wrong,
        "num_judged": len(verdicts),
        "verdicts": {verdict: counts[verdict] for verdict in VERDICTS},
    }
    for name, is_lenient in (("accuracy", False), ("lenient_accuracy", True)):
        likely = float(accuracy(shares, is_lenient=is_lenient))
        low, high = np.percentile(accuracy(narrowed, is_lenient=is_lenient), [2.5, 97.5])
        # Verdicts that are all the same lie at the end of what they leave likely.
        interval = {
            f"{name}_low": max(0.0, min(float(low), likely)),
            f"{name}_high": min(1.0, max(float(high), likely)),
        }
        result |= {name: likely, **interval}
    return result

"""Verdicts of people as a report keeps them: by pair, with who gave each and when."""

import json
from collections.abc import Mapping

from cluster.audit.result.human_review import Verdict
from pipeline.base.errors import NotFound
from pipeline.base.records import json_bytes
from pipeline.store.base import Store, put

_VERDICTS = "verdicts.json"


def read_verdicts(out: Store) -> dict[str, Verdict]:
    """Read all verdicts of a report, by pair; earlier releases recorded neither who gave them nor when."""
    try:
        found = json.loads(out.read(_VERDICTS))
    except NotFound:
        return {}
    return {
        pair: Verdict(verdict=verdict) if isinstance(verdict, str) else Verdict.model_validate(verdict)
        for pair, verdict in found.items()
    }


def record_verdicts(out: Store, verdicts: Mapping[str, Verdict]) -> None:
    """Add verdicts to those of a report; another verdict on a pair replaces the earlier one.

    The same verdict once more leaves who gave it and when: a page keeps all that were ever given in its browser.
    """
    merged = read_verdicts(out)
    for pair, given in verdicts.items():
        if pair not in merged or merged[pair].verdict != given.verdict:
            merged[pair] = given
    put(out, _VERDICTS, json_bytes({pair: verdict.model_dump() for pair, verdict in sorted(merged.items())}))


def write_for_pages(out: Store) -> None:
    """Write verdicts.js, which the pages of pairs show."""
    words = {pair: verdict.verdict for pair, verdict in read_verdicts(out).items()}
    put(out, "verdicts.js", f"const importedVerdicts = {json.dumps(words, sort_keys=True)};\n".encode())

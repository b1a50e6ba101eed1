"""What is in a folder and what is not."""

from __future__ import annotations

from mtlbench.formats import Manifest
from mtlbench.report.model import Failure, State
from mtlbench.report.table import Table
from mtlbench.suite import SINGLE_TASK


def state(found: Table, manifest: Manifest) -> State:
    """Of all runs of the folder."""
    ok = found.ok
    failed = found.runs[~found.runs["ok"].astype(bool)]
    unscored = ok[(ok["method"] != SINGLE_TASK) & ok["delta_m"].isna()]
    columns = ["task", "method", "seed", "error"]
    return State(
        finished=len(ok),
        failed=[Failure(t, m, int(s), e) for t, m, s, e in failed[columns].itertuples(index=False)],
        missing=_missing(set(zip(ok["task"], ok["method"], ok["seed"])), manifest),
        unscored=[f"{m} on {t}, seed {s}" for t, m, s in unscored[columns[:3]].itertuples(index=False)],
        torn_lines=len(found.unreadable),
        unreadable=found.unreadable,
        outdated=found.outdated,
    )


def _missing(have: set[tuple[str, str, int]], manifest: Manifest) -> list[str]:
    """What the same command would still do: what the suite wants, as it was called, and no record has."""
    suite = manifest.suite
    if suite is None:
        return []
    seeds = sorted({seed for _, _, seed in have} | set(range(manifest.seeds or suite.seeds)))
    not_run = {*manifest.left_out, *manifest.refused}
    wanted = [SINGLE_TASK, *(m.name for m in suite.methods if m.name not in not_run)]
    return [
        f"{m} on {t.name}, seed {s}" for t in suite.tasks for m in wanted for s in seeds if (t.name, m, s) not in have
    ]

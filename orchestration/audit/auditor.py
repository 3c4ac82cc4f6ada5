"""Audits training windows: reads a window's rows, replays its decisions, runs the checks, and keeps what was found.

Each audit is a file, `<root>/audit/<window>.json`. Later windows are compared with the evidence in it, so no window is
read twice.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions
from scipy import stats

from beam_jobs.reward_join import holdback_ids, in_holdback
from beam_jobs.tables import choose_dim
from beam_jobs.warehouses import Warehouse
from beam_jobs.window_rows import read_tables
from contracts.windows import TrainingWindow, WindowSettings
from orchestration import policy_store
from orchestration.audit import checks, evidence_job, window_audits
from orchestration.audit.deciders import load_decider
from orchestration.audit.findings import Finding
from orchestration.audit.shares import periods
from orchestration.audit.window_audits import Examination, WindowAudit
from orchestration.audit.window_evidence import Gathered, Question, gather_window
from trainer.linear import SufficientStatistics, disjoint
from trainer.mounts import unmounted

# How unlikely the relation of fresh predictions and held-back rewards must be by chance to call it consistent.
CONSISTENT_LEVEL = 1e-3


class Auditor:
    """Audits windows of one warehouse against one policy store; keeps the audits in `folder`.

    Decisions of live versions are replayed from the files in the folder `live`, as far as they are kept. With `beam`, Beam's
    options, the evidence is summed by a Beam job (`orchestration.audit.evidence_job`), and a break is examined on a sample
    of the window; without, by this process, which reads a window into its memory.
    """

    def __init__(
        self,
        source: Warehouse,
        store: Path,
        folder: Path,
        settings: WindowSettings,
        live: Path | None = None,
        beam: PipelineOptions | None = None,
    ) -> None:
        self._live = live
        self._beam = beam
        self._source = source
        self._store = store
        self._folder = folder
        self._settings = settings
        self._load = lru_cache(maxsize=16)(lambda version: load_decider(store, version, live))

    def audit(self, window: TrainingWindow, interrupted: bool = False, revision: int = 0) -> WindowAudit:
        """The audit of a revision of `window`, which is made and kept unless it, or that of a later one, is there already.

        It is compared with the accepted windows before it in which versions of the store decided. A bootstrap's
        decisions are simulated, so its rewards say nothing about those that viewers send. How rewards arrived is not
        compared for an `interrupted` window.

        Raises InputError when rows cannot be read, or a policy that decided is there but cannot be read.
        """
        kept = window_audits.read(self._folder, window)
        if kept is not None and kept.revision >= revision:
            return kept
        evidence, interactions = self._gather(window)
        silence_counts = self._settings.missing_reward == "default"
        before = [one.evidence for one in window_audits.read_all(self._folder) if one.accepted and one.window < window]
        before = [one for one in before if any(version.replayed for version in one.versions.values())]
        findings = checks.run(evidence, before, interrupted, silence_counts)
        audit = WindowAudit(
            window=window, accepted=True, reason="", findings=findings, evidence=evidence, revision=revision
        )
        if audit.alarms:
            examination: Examination | None = None
            if not any(finding.kind == "contradiction" for finding in audit.alarms):
                examination = examine(interactions, self._settings.holdback_share, silence_counts)
            audit = msgspec.structs.replace(
                audit, accepted=False, reason=describe(audit.alarms, examination), examination=examination
            )
        if kept is not None:
            audit = audit.after(kept)
        window_audits.write(self._folder, audit)
        return audit

    def _gather(self, window: TrainingWindow) -> Gathered:
        dims = self._source.observation_dims(window.start, window.end)
        question = Question(window, self._settings, choose_dim(dims), periods(self._store))
        if self._beam is not None:
            champions = frozenset(past.version for past in policy_store.history(self._store))
            policies = evidence_job.Policies(unmounted(str(self._store)), champions, self._live)
            return evidence_job.gather(self._source, policies, question, dims, self._beam)
        tables = read_tables(self._source, window, self._settings)
        return gather_window(tables, question, self._load)


def examine(interactions: pa.RecordBatch, holdback_share: float, silence_counts: bool = False) -> Examination:
    """Whether a policy fitted afresh to the window predicts its held-back part.

    "consistent": the meaning of rewards changed for all alike, by a corrupted feed or by a new taste; no log can tell
    which. "noise": nothing predicts the rewards.
    """
    if not silence_counts:
        interactions = interactions.filter(pc.invert(interactions.column("defaulted")))
    if not interactions.num_rows:
        return "noise"
    observation = np.array(interactions.column("observation").to_pylist(), np.float32)
    action = interactions.column("action").to_numpy().astype(np.int64)
    reward = interactions.column("reward").to_numpy()
    held_back = in_holdback(holdback_ids(interactions), max(holdback_share, 0.2))
    if held_back.all() or held_back.sum() < 20:
        return "noise"
    statistics = SufficientStatistics.zeros(int(action.max()) + 1, observation.shape[1])
    statistics.add(observation[~held_back], action[~held_back], reward[~held_back].astype(np.float32))
    theta = disjoint(statistics, 1.0).theta
    seen = held_back & (statistics.n[action] > 0)
    predicted = (observation[seen] * theta[action[seen]]).sum(axis=1)
    if seen.sum() < 20 or predicted.std() == 0 or reward[seen].std() == 0:
        return "noise"
    found = stats.spearmanr(predicted, reward[seen])
    return "consistent" if found.statistic > 0 and found.pvalue < CONSISTENT_LEVEL else "noise"


def describe(alarms: Sequence[Finding], examination: Examination | None) -> str:
    """Why a window is refused, in one line."""
    parts = [f"{finding.check}: {finding.fact}; {finding.meaning}" for finding in alarms]
    match examination:
        case "consistent":
            parts.append(
                "a policy fitted afresh to the window predicts its held-back part: a corrupted feed or a new taste"
            )
        case "noise":
            parts.append("nothing predicts the held-back part of the window: noise")
        case None:
            pass
    return " | ".join(parts)

"""Probation in the pipelines: what serves is watched window by window, as in the local loop, and each run goes on with it.

If `vertex` holds a target (`orchestration.cloud.target.VertexTarget` as JSON), the endpoint's traffic split gives the anchor
its share, and the endpoint changes before the policy store. If the process dies between the two, `settle` does the rest.
"""

from datetime import UTC, datetime
from typing import assert_never

from orchestration import policy_store, probation
from orchestration.pipelines import plan as plans
from orchestration.pipelines import runs
from orchestration.pipelines.plan import Plan, decode_plan
from orchestration.places import Places
from orchestration.probation import Entry, Source, Trial


def watch(plan: str, exported: str, warehouse: str, vertex: str) -> str:
    """Adds the plan's windows to the evidence about the version on probation; confirms it or rolls it back.

    Args:
      plan: a `Plan` as JSON.
      exported: what the audit returned.
      warehouse: `bigquery:PROJECT.DATASET`, or empty for the embedded one below the root.
      vertex: a `VertexTarget` as JSON, or empty.

    Returns `exported`, or "rolled back" when the version before serves again: the run ends then.
    """
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "watch") as record:
        places = made.places
        if exported != "exported" or probation.current_trial(places) is None:
            record.said = "nothing is on probation" if exported == "exported" else exported
            return exported
        from orchestration.audit import guard

        refused, source = guard.refused_windows(places), source_of(made, warehouse)
        for window in plans.exported_windows(places.windows):
            if window.start not in refused:
                probation.add(places, source, window)
        trial = settle(places, vertex)
        assert trial is not None
        record.said = f"{trial.look.version} {trial.look.outcome}: {trial.look.reason}"
        if trial.look.outcome != "rolled back":
            return exported
        record.version, record.outcome = trial.look.version, "rolled back"
        return "rolled back"


def settle(places: Places, vertex: str) -> Trial | None:
    """Lets serve what the newest verdict asks for, first on the endpoint. Returns the trial; None if there is none.

    It is safe to do again.
    """
    trial = probation.current_trial(places)
    if trial is None:
        return None
    if vertex and trial.look.outcome != "on probation":
        from orchestration.cloud.vertex_endpoint import endpoint_of

        match trial.look.outcome:
            case "confirmed":
                endpoint_of(vertex).promote(trial.look.version, trial.look.reason)
            case "rolled back":
                endpoint_of(vertex).promote(trial.anchor, f"probation: {trial.look.reason}")
            case unknown:
                assert_never(unknown)
    probation.settle(places, trial, datetime.now(UTC))
    return trial


def serve(places: Places, entry: Entry, vertex: str) -> None:
    """Makes the version of `entry` the champion, on probation or alone, first on the endpoint."""
    if vertex:
        from orchestration.cloud.vertex_endpoint import endpoint_of

        trial = entry.trial
        beside = None if trial is None else (trial.anchor, trial.evidence.anchor_share)
        endpoint_of(vertex).promote(entry.version, entry.reason, beside)
    probation.commit(places, entry, datetime.now(UTC), "traffic" if vertex else "ids")


def beside(places: Places) -> tuple[str, float] | None:
    """The anchor of the champion and its share; None if it serves alone."""
    pointer = policy_store.champion(places.policies)
    if pointer is None or pointer.anchor is None:
        return None
    return pointer.anchor, pointer.anchor_share


def source_of(made: Plan, warehouse: str) -> Source:
    """Where the decisions of a run's windows are read from: BigQuery, or the embedded warehouse if `warehouse` is empty."""
    from apache_beam.options.pipeline_options import PipelineOptions

    from beam_jobs.warehouses import EmbeddedWarehouse, open_warehouse

    places = made.places
    tables = open_warehouse(warehouse, PipelineOptions([])) if warehouse else EmbeddedWarehouse(places.warehouse)
    return Source(tables, made.settings.record_settings)

"""The steps that roll a candidate out: register, canary, promote or withdraw, and the report of the run.

If `vertex` holds a target (`orchestration.cloud.target.VertexTarget` as JSON), the steps change the Vertex AI endpoint
too, and the endpoint first: the policy store never names a champion that does not serve.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from contracts import policies
from contracts.command_line import build
from orchestration import endpoint as endpoints
from orchestration import policy_store
from orchestration.gate import GateResult
from orchestration.pipelines import canary, runs
from orchestration.pipelines.canary import Canary
from orchestration.pipelines.canary_rewards import CanaryRewards
from orchestration.pipelines.plan import Plan, decode_plan
from orchestration.places import Places, replace_file


def register(plan: str, candidate: str, result: str, vertex: str) -> str:
    """Writes the gate's estimate into the policy's card, and registers the policy in the Vertex AI Model Registry."""
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "register") as record:
        judged = msgspec.json.decode(result, type=GateResult)
        path = made.places.policies / candidate / policies.CARD_NAME
        card = policies.decode_card(path.read_bytes(), str(path))
        if card.evaluation != judged.evaluation:
            card = msgspec.structs.replace(card, evaluation=judged.evaluation)
            replace_file(path, policies.encode_json(card))
        record.version, record.said = candidate, f"{candidate}: {judged.reason}"
        if vertex:
            from orchestration.cloud.vertex_models import models_of

            record.said = models_of(vertex).register(card, judged.reason)
        return candidate


def try_out(plan: str, candidate: str, settings: dict[str, Any], warehouse: str, vertex: str) -> str:
    """Canary: the candidate takes a share of the decisions for a while. Returns "promote" or "roll back".

    Args:
      plan: a `Plan` as JSON.
      candidate: version of the policy to try.
      settings: the fields of a `Canary`.
      warehouse: `bigquery:PROJECT.DATASET`, from which rewards are read; empty: the embedded warehouse.
      vertex: a `VertexTarget` as JSON, or empty.
    """
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "try_out") as record:
        wanted = build(Canary, settings)
        record.version = candidate
        if not wanted.share or made.champion is None:
            record.said = "no canary" if not wanted.share else "no canary: there is no champion yet"
            return "promote"
        if vertex:
            from orchestration.cloud.vertex_endpoint import endpoint_of

            endpoint_of(vertex).canary(candidate, wanted.share)
        champion = made.champion
        canary.start(made.places.policies, candidate, wanted.share)
        begin = datetime.now(UTC)
        rewards = CanaryRewards(made.places, warehouse, (candidate, champion), begin, made.settings)
        verdict = canary.watch(rewards.trial, begin, wanted, made.settings.closing_seconds)
        record.said = verdict.reason
        return verdict.action


def promote(plan: str, candidate: str, result: str, endpoint: str, vertex: str) -> str:
    """Makes the candidate the champion, and waits until the predictor at `endpoint` (if any) serves it."""
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "promote") as record:
        judged = msgspec.json.decode(result, type=GateResult)
        reason = "; ".join([judged.reason, *_said_in_canary(made)])
        if endpoint:
            endpoints.served(endpoint)  # a predictor that does not answer fails the step before anything has changed
        if vertex:
            from orchestration.cloud.vertex_endpoint import endpoint_of

            endpoint_of(vertex).promote(candidate, reason)
        policy_store.roll_out(made.places.policies, candidate, reason, datetime.now(UTC))
        if endpoint:
            endpoints.wait_until_served(endpoint, candidate)
        record.version, record.said, record.outcome = candidate, reason, "promoted"
        return candidate


def withdraw(plan: str, candidate: str, vertex: str) -> str:
    """Ends the canary: the champion serves every decision again."""
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "withdraw") as record:
        _end_canary(made.places.policies, vertex)
        record.version, record.outcome = candidate, "rolled back"
        record.said = "".join(_said_in_canary(made)) or "the canary was ended"
        return candidate


def report_outcome(root: str, run_id: str, pipeline: str, vertex: str, state: str, error: str) -> None:
    """Writes the report of the run and prints it as one line. If the run failed, ends the canary that it left."""
    report = runs.close(Path(root), run_id, pipeline, state, error, datetime.now(UTC))
    print(report.line)
    if report.outcome == "failed":
        _end_canary(Places(Path(root)).policies, vertex)


def _end_canary(store: Path, vertex: str) -> None:
    """Gives all decisions back to the champion, if there is one.

    The endpoint may have a canary that the store does not record, because the endpoint changes first.
    """
    if policy_store.champion(store) is None:
        return
    if vertex:
        from orchestration.cloud.vertex_endpoint import endpoint_of

        endpoint_of(vertex).end_canary()
    canary.end(store)


def _said_in_canary(made: Plan) -> list[str]:
    """The result of this run's canary; empty if it had none."""
    return [record.said for record in runs.records(Path(made.root), made.run_id) if record.step == "try_out"][-1:]

"""The steps that roll a candidate out: register, canary, promote or withdraw, and the report of the run.

If `vertex` holds a target (`orchestration.cloud.target.VertexTarget` as JSON), the steps change the Vertex AI endpoint
too, and the endpoint first: the policy store never names a champion that does not serve.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, assert_never

import msgspec

from contracts import policies
from contracts.command_line import build
from contracts.errors import InputError
from contracts.policies import SharedBy
from orchestration import endpoint as endpoints
from orchestration import policy_store, probation
from orchestration.gate import GateResult
from orchestration.pipelines import canary, probation_tasks, runs
from orchestration.pipelines.canary import Canary
from orchestration.pipelines.canary_rewards import CanaryRewards, CanaryWatch
from orchestration.pipelines.plan import Plan, decode_plan
from orchestration.places import Places, replace_file
from orchestration.probation import Entry
from orchestration.watch import Caution, Evidence, Look
from predictor import policy as serving

# Servers follow the pointer some seconds late: decisions of the canary's shares are not those of the probation.
FOLLOWED = timedelta(seconds=10)


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


def try_out(plan: str, candidate: str, result: str, settings: dict[str, Any], warehouse: str, vertex: str) -> str:
    """Canary: the candidate takes a share of the decisions for a while. Returns "promote" or "withdraw".

    A candidate that is still undecided is promoted if it passed the gate without it: it will be on probation. Another
    algorithm or setting, of which the gate could not show that it is better, is withdrawn.

    Args:
      plan: a `Plan` as JSON.
      candidate: version of the policy to try.
      result: a `GateResult` as JSON.
      settings: the fields of a `Canary`.
      warehouse: `bigquery:PROJECT.DATASET`, from which rewards are read; empty: the embedded warehouse.
      vertex: a `VertexTarget` as JSON, or empty.
    """
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "try_out") as record:
        wanted, judged = build(Canary, settings), msgspec.json.decode(result, type=GateResult)
        record.version = candidate
        if (why := _not_tried(made, wanted)) is not None:
            record.said = f"no canary: {why}"
            return "promote"
        try:
            began = _evidence(made, candidate, wanted, warehouse)
        except InputError as error:
            record.said = f"no canary: {error}"
            return "withdraw" if judged.must_be_confirmed else "promote"
        look = _canary(made, candidate, began, wanted, warehouse, vertex)
        match look.outcome:
            case "confirmed":
                record.said = f"confirmed in the canary: {look.reason}"
                return "promote"
            case "rolled back":
                record.said = f"worse in the canary: {look.reason}"
                return "withdraw"
            case "on probation":
                record.said = f"undecided in the canary: {look.reason}"
                return "withdraw" if judged.must_be_confirmed else "promote"
            case unknown:
                assert_never(unknown)


def _not_tried(made: Plan, wanted: Canary) -> str | None:
    """Why there is no canary, if there is a reason."""
    current = policy_store.champion(made.places.policies)
    if current is None:
        return "there is no champion yet"
    if current.anchor is not None:
        return f"{current.version} is on probation, and its evidence goes on with this update"
    return None if wanted.share else "its share is 0"


def _evidence(made: Plan, candidate: str, wanted: Canary, warehouse: str) -> Evidence:
    """What is known about the candidate before its canary. Raises InputError if there is nothing to watch it by."""
    places, champion = made.places, made.champion
    assert champion is not None
    before = canary.read(places.root)
    card = serving.read_card(places.policies / candidate)
    if serving.in_common(*(serving.load(places.policies / version) for version in (candidate, champion))) is not None:
        raise InputError(
            f"{candidate}: must offer the items that {champion} offers to be compared in a canary, got others"
        )
    if before is not None and before.goes_on(places.policies, card, champion, wanted):
        return before.evidence
    source = probation_tasks.source_of(made, warehouse)
    return probation.first_evidence(places.policies, source, candidate, champion, wanted, 1 - wanted.share)


def _canary(made: Plan, candidate: str, began: Evidence, wanted: Canary, warehouse: str, vertex: str) -> Look:
    """Lets the candidate take its share until `canary.watch` has ended. Returns and keeps the last look."""
    places, champion = made.places, made.champion
    assert champion is not None
    if vertex:
        from orchestration.cloud.vertex_endpoint import endpoint_of

        endpoint_of(vertex).canary(candidate, wanted.share)
    shared_by: SharedBy = "traffic" if vertex else "ids"
    canary.start(places.policies, candidate, wanted.share, shared_by)
    begin = datetime.now(UTC)
    rewards = CanaryRewards(places, warehouse, begin, made.settings)
    trial = CanaryWatch(rewards, places, (candidate, champion), began, shared_by)
    look = canary.watch(trial.look, begin, wanted, made.settings.closing_seconds)
    canary.write(
        places.root,
        canary.Trial(
            candidate=candidate,
            champion=champion,
            evidence=trial.evidence,
            look=look,
        ),
    )
    return look


def promote(
    plan: str, candidate: str, result: str, settings: dict[str, Any], warehouse: str, endpoint: str, vertex: str
) -> str:
    """Makes the candidate the champion, and waits until the predictor at `endpoint` (if any) serves it.

    It is on probation beside the champion before it, unless its canary has confirmed it; see `probation.prepare`.
    """
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "promote") as record:
        judged = msgspec.json.decode(result, type=GateResult)
        reason = "; ".join([judged.reason, *_said_in_canary(made)])
        if endpoint:
            endpoints.served(endpoint)  # a predictor that does not answer fails the step before anything has changed
        entry = _entry(made, candidate, reason, build(Canary, settings), warehouse)
        probation_tasks.serve(made.places, entry, vertex)
        if endpoint:
            endpoints.wait_until_served(endpoint, candidate)
        record.version, record.said, record.outcome = candidate, entry.reason, "promoted"
        if entry.trial is not None:
            record.outcome = "on probation"
            record.said += (
                f"; on probation beside {entry.trial.anchor}, which keeps {entry.trial.look.anchor_share:.0%}"
            )
        return candidate


def _entry(made: Plan, candidate: str, reason: str, caution: Caution, warehouse: str) -> Entry:
    """How the candidate comes in: alone if its canary has confirmed it, else with the evidence of the canary."""
    tried = canary.read(made.places.root)
    begun = None
    if tried is not None and (tried.candidate, tried.champion) == (candidate, made.champion):
        if tried.look.outcome == "confirmed":
            return Entry(candidate, reason)
        begun = (tried.evidence, datetime.now(UTC) + FOLLOWED)
    source = probation_tasks.source_of(made, warehouse)
    return probation.prepare(made.places, source, candidate, caution, reason, begun)


def withdraw(plan: str, candidate: str, vertex: str) -> str:
    """Ends the canary: the champion serves every decision again."""
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "withdraw") as record:
        _end_canary(made.places, vertex)
        tried = canary.read(made.places.root)
        worse = tried is not None and tried.candidate == candidate and tried.look.outcome == "rolled back"
        record.version, record.outcome = candidate, "rolled back" if worse else "undecided"
        record.said = "".join(_said_in_canary(made)) or "the canary was ended"
        return candidate


def report_outcome(root: str, run_id: str, pipeline: str, vertex: str, state: str, error: str) -> None:
    """Writes the report of the run and prints it as one line. If the run failed, ends the canary that it left."""
    report = runs.close(Path(root), run_id, pipeline, state, error, datetime.now(UTC))
    print(report.line)
    if report.outcome == "failed":
        _end_canary(Places(Path(root)), vertex)


def _end_canary(places: Places, vertex: str) -> None:
    """Gives the candidate's decisions back to the champion, if there is one.

    The endpoint may have a canary that the store does not record, because the endpoint changes first.
    """
    if policy_store.champion(places.policies) is None:
        return
    if vertex:
        from orchestration.cloud.vertex_endpoint import endpoint_of

        endpoint_of(vertex).end_canary(probation_tasks.beside(places))
    canary.end(places.policies)


def _said_in_canary(made: Plan) -> list[str]:
    """The result of this run's canary; empty if it had none."""
    return [record.said for record in runs.records(Path(made.root), made.run_id) if record.step == "try_out"][-1:]

"""Vertex AI: the one module that calls its SDK. Registers policies, rolls them out, submits and schedules pipelines.

There is one parent model and one endpoint an environment, both under the name of `Place.endpoint`. Policies are versions
of that model, each with its own alias; two more aliases move: `champion`, which serves, and `previous`, the way back.
What serves is the endpoint's traffic split alone, changed in one call; the aliases follow it.

Why a version became the champion, and when, stands in its description, among what else is known of the policy: labels take
neither spaces nor capitals.

Every method finds out what is there first, does what is missing and returns what it did in a sentence: run twice, the
second one says that it was done.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from google.api_core import exceptions
from google.auth import exceptions as auth_exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform
from google.cloud.aiplatform_v1 import types

from contracts.errors import InputError
from contracts.event_segments import compact_time
from contracts.policies import Evaluation, PolicyCard
from orchestration.cloud.configuration import PIPELINES
from orchestration.cloud.place import Place

CHAMPION = "champion"
PREVIOUS = "previous"
DIGEST = "digest"  # label of a scheduled job
PORT = 8080
DEPLOY_TIMEOUT_SECONDS = 1800
# Of one version: a description has its limits, and who goes back and forth more often than this has the audit log.
MAX_PROMOTIONS = 20
MOVES = 5  # of an alias, while others move it
# What the service answers when somebody else changed the thing in between.
MET = (exceptions.NotFound, exceptions.BadRequest, exceptions.Conflict)
UNDER_WAY = {"PIPELINE_STATE_QUEUED", "PIPELINE_STATE_PENDING", "PIPELINE_STATE_RUNNING"}


class Deployed(NamedTuple):
    """One policy on the endpoint."""

    id: str  # of the deployed model
    version: str
    traffic: int  # percent


class Promotion(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """When a version became the champion, and why."""

    promoted_at: datetime
    version: str
    reason: str


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What the registry knows of a version beside its labels, as JSON in its description."""

    version: str
    parent: str | None
    reason: str  # the gate's
    evaluation: Evaluation | None
    windows: list[tuple[datetime, datetime, str, int]]  # the newest ones: start, end, split, records
    promotions: list[Promotion] = []


class Scheduled(NamedTuple):
    """One schedule of a pipeline."""

    name: str
    state: str
    cron: str
    next_run: str


def decode_place(text: str) -> Place:
    """The inverse of `msgspec.json.encode`. Raises InputError."""
    try:
        return msgspec.json.decode(text, type=Place)
    except msgspec.DecodeError as error:
        raise InputError(f"vertex: not a place: {error}") from None


class Vertex:
    """One environment on Vertex AI."""

    def __init__(self, place: Place) -> None:
        self._place = place
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("google.cloud.aiplatform"):
                logging.getLogger(name).setLevel(logging.WARNING)  # the SDK narrates every call
        with _told():
            if place.api_endpoint:
                aiplatform.init(
                    project=place.project,
                    location=place.location,
                    staging_bucket=place.staging_bucket or None,
                    api_endpoint=place.api_endpoint,
                    api_transport="rest",
                    credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
                )
            else:
                aiplatform.init(
                    project=place.project, location=place.location, staging_bucket=place.staging_bucket or None
                )

    # The model registry.

    def register(self, card: PolicyCard, reason: str) -> str:
        """Adds a policy as a version of the one parent model."""
        with _told():
            if (number := self._aliases().get(alias(card.version))) is not None:
                return f"{card.version} is registered already, as version {number}"
            parent = self._model()
            model = aiplatform.Model.upload(
                display_name=self._place.endpoint,
                model_id=None if parent else resource_id(self._place.endpoint),
                parent_model=parent.resource_name if parent else None,
                is_default_version=parent is None,
                version_aliases=[alias(card.version)],
                version_description=describe(card, reason),
                labels=labels(card),
                artifact_uri=f"{self._place.policies}/{card.version}",
                serving_container_image_uri=self._place.image,
                serving_container_args=[
                    f"--events={self._place.events}",
                    *([f"--topic={self._place.topic}"] if self._place.topic else []),
                ],
                serving_container_predict_route="/predict",
                serving_container_health_route="/health",
                serving_container_ports=[PORT],
                sync=True,
            )
            return f"{card.version} is registered, as version {model.version_id}"

    # The endpoint.

    def canary(self, version: str, share: float) -> str:
        """Deploys a registered version to the one endpoint with `share` of its traffic, the rest stays as it was.

        Without anything else there, it takes all. Raises InputError for a version that is not registered, or a share
        that is not from 0.01 to 1: Vertex AI splits traffic by whole percents.
        """
        percent = round(100 * share)
        if not 1 <= percent <= 100:
            raise InputError(f"share must be from 0.01 to 1, as traffic is split by whole percents, got {share}")
        with _told():
            endpoint = self._endpoint()
            there = self._deployed(endpoint)
            champion = self._serving(there, other_than=version)
            if champion is None:
                percent = 100
            rest = {champion.id: 100 - percent} if champion is not None and percent < 100 else {}
            mine = next((one for one in there if one.version == version), None)
            if mine is None:
                self._deploy(endpoint, version, {"0": percent} | rest)
                return f"{version} is deployed and takes {percent}% of the traffic"
            split = {mine.id: percent} | rest
            if split == _split(there):
                return f"{version} takes {percent}% of the traffic already"
            endpoint.update(traffic_split=split)
            return f"{version} takes {percent}% of the traffic"

    def promote(self, version: str, reason: str) -> str:
        """Gives a registered version all the traffic; the one before stays deployed, as the way back.

        Of two that are promoted at a time the one whose traffic came last serves: the alias follows it.

        Args:
          version: of the policy.
          reason: why, for the history.
        """
        with _told():
            before = self._roles().get(CHAMPION)
            endpoint = self._endpoint()
            there = self._deployed(endpoint)
            mine = next((one for one in there if one.version == version), None)
            if mine is not None and mine.traffic == 100 and before == version:
                self._move(CHAMPION, version)
                return f"{version} is the champion already"
            if mine is None:
                self._deploy(endpoint, version, {"0": 100})
            elif mine.traffic != 100:
                endpoint.update(traffic_split={mine.id: 100})
            if before != version:
                if before is not None:
                    self._move(PREVIOUS, before)
                if [past.version for past in self.history()[-1:]] != [version]:  # by a promotion that was interrupted
                    self._note(Promotion(promoted_at=datetime.now(UTC), version=version, reason=reason))
            self._move(CHAMPION, version)
            idle = self.undeploy_idle()
            serving = max(self._deployed(endpoint), key=_traffic).version
            if serving != version:
                self._move(CHAMPION, serving)
                return f"{version} was promoted, but {serving} after it: that is the champion now"
            return f"{version} is the champion, in place of {before or 'nothing'}; {idle}"

    def roll_back(self, reason: str) -> str:
        """Gives all the traffic back to the version before the champion. Raises InputError when there was none."""
        with _told():
            previous = self._roles().get(PREVIOUS)
            if previous is None:
                raise InputError(f"endpoint {self._place.endpoint} has no earlier champion to go back to")
            return self.promote(previous, reason)

    def history(self) -> list[Promotion]:
        """Every champion there was, oldest first."""
        with _told():
            return sorted(one for info in self._versions() for one in _described(info).promotions)

    def end_canary(self) -> str:
        """Gives all the traffic to the champion, and undeploys what then has none."""
        with _told():
            champion = self._roles().get(CHAMPION)
            if champion is None:
                raise InputError(f"endpoint {self._place.endpoint} has no champion")
            endpoint = self._endpoint()
            there = self._deployed(endpoint)
            mine = next((one for one in there if one.version == champion), None)
            if mine is None:
                raise InputError(f"endpoint {self._place.endpoint} does not serve its champion, {champion}")
            if mine.traffic != 100:
                endpoint.update(traffic_split={mine.id: 100})
            return f"{champion} takes all the traffic; {self.undeploy_idle()}"

    def undeploy_idle(self) -> str:
        """Undeploys what has no traffic and is not the way back: a replica costs money though nobody asks it."""
        with _told():
            endpoint = self._endpoint()
            keep = set(self._roles().values())
            gone = []
            for one in self._deployed(endpoint):
                if not one.traffic and one.version not in keep:
                    with suppress(*MET):  # it is gone, or has traffic now
                        endpoint.undeploy(deployed_model_id=one.id)
                        gone.append(one.version)
            return f"undeployed {', '.join(gone)}" if gone else "nothing was idle"

    def deployed(self) -> list[Deployed]:
        """What is on the endpoint, most traffic first; nothing when there is no endpoint."""
        with _told():
            endpoint = self._find_endpoint()
            return sorted(self._deployed(endpoint), key=lambda one: -one.traffic) if endpoint else []

    def champion(self) -> str | None:
        """The version that the alias `champion` stands for."""
        with _told():
            return self._roles().get(CHAMPION)

    def predict(self, instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Predictions of the endpoint. Raises InputError when there is none."""
        with _told():
            endpoint = self._find_endpoint()
            if endpoint is None:
                raise InputError(f"endpoint {self._place.endpoint} is gone: roll a policy out first")
            predictions: list[dict[str, Any]] = endpoint.predict(instances=instances).predictions
            return predictions

    # Pipelines.

    def submit(self, pipeline: str, yaml: Path, job_id: str, parameters: dict[str, Any], pipeline_root: str) -> str:
        """Runs a compiled pipeline under `job_id`; a job of that id is taken as this one, submitted before."""
        with _told():
            job = self._job(pipeline, yaml, parameters, pipeline_root, job_id)
            try:
                job.submit(service_account=self._place.pipelines_account or None)
            except exceptions.Conflict:  # AlreadyExists, as REST says it
                return f"{job_id} was submitted before"
            return f"{job_id} is submitted"

    def schedule(
        self,
        pipeline: str,
        yaml: Path,
        parameters: dict[str, Any],
        pipeline_root: str,
        cron: str,
        digest: str,
    ) -> str:
        """Creates or updates the schedule of a pipeline; at most one run of it is active.

        The service changes the times of a schedule, not its pipeline: where `digest` (of the pipeline and its parameters)
        is another, the new schedule is created before the old one is deleted. One that was paused stays paused.
        Of two that are created at a time, the later one stays.
        """
        with _told():
            found = self._schedules(pipeline)
            paused = any(one.state == types.Schedule.State.PAUSED for one in found)
            but = ", but paused" if paused else ""
            if len(found) == 1 and _scheduled_digest(found[0]) == digest:
                if found[0].cron == cron:
                    return f"{pipeline} is scheduled already{but}: {cron}"
                found[0].update(cron=cron, max_concurrent_run_count=1)
                return f"the schedule of {pipeline} is now {cron}{but}"
            job = self._job(pipeline, yaml, parameters, pipeline_root, None, {DIGEST: digest})
            job.create_schedule(
                display_name=pipeline,
                cron=cron,
                max_concurrent_run_count=1,
                service_account=self._place.pipelines_account or None,
            )
            newest, *others = self._schedules(pipeline)
            if paused:
                newest.pause()
            for other in others:
                with suppress(exceptions.NotFound):  # who created it at the same time deleted it
                    other.delete()
            return f"{pipeline} is scheduled{', in place of what it was' if found else ''}{but}: {cron}"

    def pause_schedule(self, pipeline: str) -> str:
        """Pauses the schedule of a pipeline. Raises InputError when there is none."""
        with _told():
            for schedule in self._needed_schedules(pipeline):
                if schedule.state != types.Schedule.State.PAUSED:
                    schedule.pause()
            return f"the schedule of {pipeline} is paused"

    def resume_schedule(self, pipeline: str) -> str:
        """Resumes it, without the runs that were missed. Raises InputError when there is none."""
        with _told():
            for schedule in self._needed_schedules(pipeline):
                if schedule.state == types.Schedule.State.PAUSED:
                    schedule.resume(catch_up=False)
            return f"the schedule of {pipeline} goes on"

    def delete_schedule(self, pipeline: str) -> str:
        """Deletes it. Raises InputError when there is none."""
        with _told():
            for schedule in self._needed_schedules(pipeline):
                schedule.delete()
            return f"the schedule of {pipeline} is deleted"

    def schedules(self) -> list[Scheduled]:
        """All schedules of the project's location."""
        with _told():
            return [
                Scheduled(one.display_name, one.state.name, one.cron, one.to_dict().get("nextRunTime", ""))
                for one in aiplatform.PipelineJobSchedule.list()
            ]

    def runs(self, pipeline: str) -> list[tuple[str, str]]:
        """Ids and states of the runs of a pipeline, newest first."""
        with _told():
            jobs = aiplatform.PipelineJob.list(filter=f'display_name="{pipeline}"', order_by="create_time desc")
            return [(job.name, job.state.name) for job in jobs]

    def under_way(self) -> str | None:
        """The id of a run that goes on, of any pipeline of this project's location, if there is one."""
        with _told():
            for pipeline in PIPELINES:
                for name, state in self.runs(pipeline):
                    if state in UNDER_WAY:
                        return name
            return None

    def best_trial(self, gcp_resources: str) -> tuple[dict[str, float | int | str | bool], float]:
        """The parameters and the metric of the best trial of a tuning job, named as Google Cloud components do it.

        Raises InputError when no trial has a metric.
        """
        (resource,) = msgspec.json.decode(gcp_resources)["resources"]
        with _told():
            job = aiplatform.HyperparameterTuningJob.get(resource["resourceUri"].partition("/v1/")[2])
            done = [trial for trial in job.trials if trial.final_measurement.metrics]
            if not done:
                raise InputError(f"{job.display_name}: none of {len(job.trials)} trials reported a metric")
            best = max(done, key=lambda trial: trial.final_measurement.metrics[0].value)
            # A parameter's id is a flag of the trainer, which spells it with hyphens.
            found = {one.parameter_id.replace("-", "_"): one.value for one in best.parameters}
            return found, best.final_measurement.metrics[0].value

    def _job(
        self,
        pipeline: str,
        yaml: Path,
        parameters: dict[str, Any],
        pipeline_root: str,
        job_id: str | None,
        labels: dict[str, str] | None = None,
    ) -> aiplatform.PipelineJob:
        return aiplatform.PipelineJob(
            display_name=pipeline,
            template_path=str(yaml),
            job_id=job_id,
            pipeline_root=pipeline_root,
            parameter_values=parameters,
            enable_caching=False,
            labels=labels,
        )

    def _schedules(self, pipeline: str) -> list[aiplatform.PipelineJobSchedule]:
        """The newest one first: there may be several while they are created at the same time."""
        found = aiplatform.PipelineJobSchedule.list(filter=f'display_name="{pipeline}"')
        return sorted(found, key=lambda one: (one.create_time, one.name), reverse=True)

    def _needed_schedules(self, pipeline: str) -> list[aiplatform.PipelineJobSchedule]:
        found = self._schedules(pipeline)
        if not found:
            raise InputError(f"there is no schedule of {pipeline!r} in {self._place.project}")
        return found

    def _model(self) -> aiplatform.Model | None:
        try:
            return aiplatform.Model(resource_id(self._place.endpoint))
        except exceptions.NotFound:
            return None

    def _versions(self) -> list[Any]:
        model = self._model()
        return list(model.versioning_registry.list_versions()) if model else []

    def _aliases(self) -> dict[str, str]:
        """Every alias and the number of the version that it stands for."""
        return {name: info.version_id for info in self._versions() for name in info.version_aliases}

    def _roles(self) -> dict[str, str]:
        """The versions that the aliases `champion` and `previous` stand for, where there are such.

        Moving an alias takes two calls. Who is killed in between leaves none; then the history knows.
        """
        registered = self._versions()
        found = {
            role: _described(info).version
            for info in registered
            for role in (CHAMPION, PREVIOUS)
            if role in info.version_aliases
        }
        served = [past.version for past in sorted(one for info in registered for one in _described(info).promotions)]
        if served and CHAMPION not in found:
            found[CHAMPION] = served[-1]
        before = [version for version in served if version != found.get(CHAMPION)]
        if before and PREVIOUS not in found:
            found[PREVIOUS] = before[-1]
        return found

    def _note(self, promotion: Promotion) -> None:
        number = self._aliases()[alias(promotion.version)]
        (known,) = [_described(info) for info in self._versions() if info.version_id == number]
        promotions = [*known.promotions, promotion][-MAX_PROMOTIONS:]
        text = msgspec.json.encode(msgspec.structs.replace(known, promotions=promotions)).decode()
        # The name decides whether a version or its parent is updated; the SDK's own `update_version` leaves that open.
        model = aiplatform.Model(resource_id(self._place.endpoint), version=number)
        update = types.Model(name=model.versioned_resource_name, version_description=text)
        model.api_client.update_model(model=update, update_mask={"paths": ["version_description"]})

    def _move(self, name: str, version: str) -> None:
        model = self._model()
        assert model is not None
        for _ in range(MOVES):
            by_alias = self._aliases()
            number = by_alias[alias(version)]
            if by_alias.get(name) == number:
                return
            try:
                if name in by_alias:
                    model.versioning_registry.remove_version_aliases([name], by_alias[name])
                model.versioning_registry.add_version_aliases([name], number)
            except MET:  # somebody else moves it too
                continue
        raise InputError(f"model {self._place.endpoint}: alias {name!r} could not be moved to {version}")

    def _find_endpoint(self) -> aiplatform.Endpoint | None:
        endpoint = aiplatform.Endpoint(resource_id(self._place.endpoint))
        try:
            endpoint.traffic_split  # noqa: B018 - asks the service: the constructor does not
        except exceptions.NotFound:
            return None
        return endpoint

    def _endpoint(self) -> aiplatform.Endpoint:
        """The one endpoint. Its id is given, so that two who create it at a time do not make two."""
        if (found := self._find_endpoint()) is not None:
            return found
        try:
            return aiplatform.Endpoint.create(
                display_name=self._place.endpoint, endpoint_id=resource_id(self._place.endpoint)
            )
        except exceptions.Conflict:  # AlreadyExists, as REST says it
            return aiplatform.Endpoint(resource_id(self._place.endpoint))

    def _deployed(self, endpoint: aiplatform.Endpoint) -> list[Deployed]:
        split = endpoint.traffic_split
        return [Deployed(one.id, one.display_name, split.get(one.id, 0)) for one in endpoint.list_models()]

    def _serving(self, there: list[Deployed], other_than: str) -> Deployed | None:
        """Who has the traffic that a canary takes its share of."""
        champion = self._roles().get(CHAMPION)
        others = [one for one in there if one.version != other_than]
        return next((one for one in others if one.version == champion), max(others, key=_traffic, default=None))

    def _deploy(self, endpoint: aiplatform.Endpoint, version: str, split: dict[str, int]) -> None:
        number = self._aliases().get(alias(version))
        if number is None:
            raise InputError(f"model {self._place.endpoint} has no version {version!r}: register it first")
        aiplatform.Model(resource_id(self._place.endpoint), version=number).deploy(
            endpoint=endpoint,
            deployed_model_display_name=version,
            traffic_split=split,
            machine_type=self._place.machine_type,
            min_replica_count=self._place.min_replicas,
            max_replica_count=self._place.max_replicas,
            service_account=self._place.service_account or None,
            deploy_request_timeout=DEPLOY_TIMEOUT_SECONDS,
            sync=True,
        )


def alias(version: str) -> str:
    """A policy version as Vertex AI takes version aliases: small letters, digits and hyphens, a letter first."""
    return re.sub(r"[^a-z0-9-]", "-", version.lower())


def resource_id(name: str) -> str:
    """A display name as Vertex AI takes ids of models and endpoints."""
    return re.sub(r"[^a-z0-9-]", "-", name.lower())[:63].strip("-")


def labels(card: PolicyCard) -> dict[str, str]:
    """What the registry's lists are filtered by."""
    newest = max((trained.window.start for trained in card.trained_on), default=None)
    found = {
        "policy": alias(card.version),
        "parent": alias(card.parent) if card.parent else "none",
        "algorithm": alias(card.algorithm),
        "windows": str(len({trained.window for trained in card.trained_on})),
        "newest_window": alias(compact_time(newest)) if newest else "none",
        "estimate": alias(f"{card.evaluation.value:.3f}") if card.evaluation else "none",
    }
    return {name: value[:63] for name, value in found.items()}


def describe(card: PolicyCard, reason: str) -> str:
    """The `Description` of a policy that is not promoted yet, as JSON."""
    known = Description(
        version=card.version,
        parent=card.parent,
        reason=reason,
        evaluation=card.evaluation,
        windows=[
            (trained.window.start, trained.window.end, trained.split, trained.records)
            for trained in card.trained_on[-20:]
        ],
    )
    return msgspec.json.encode(known).decode()


def _described(info: Any) -> Description:
    try:
        return msgspec.json.decode(info.version_description, type=Description)
    except msgspec.DecodeError as error:
        raise InputError(
            f"version {info.version_id} of model {info.model_display_name} is not one of ours: its description: {error}"
        ) from None


def _scheduled_digest(schedule: aiplatform.PipelineJobSchedule) -> str | None:
    job = schedule.to_dict().get("createPipelineJobRequest", {}).get("pipelineJob", {})
    digest: str | None = job.get("labels", {}).get(DIGEST)
    return digest


@contextmanager
def _told() -> Iterator[None]:
    """What the service refuses becomes one line."""
    try:
        yield
    except (exceptions.GoogleAPICallError, auth_exceptions.GoogleAuthError) as error:
        raise InputError(f"Vertex AI: {' '.join(str(error).split())}") from error


def _split(there: list[Deployed]) -> dict[str, int]:
    return {one.id: one.traffic for one in there if one.traffic}


def _traffic(one: Deployed) -> int:
    return one.traffic

"""The pipeline runs, schedules and tuning jobs of one environment on Vertex AI.

Environments may share a project. Display names of runs and schedules begin with the environment's name, as in
`bandit-dev-retrain`, and every listing filters by them.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from google.api_core import exceptions
from google.cloud import aiplatform
from google.cloud.aiplatform_v1 import types

from contracts.errors import InputError, OperationError
from orchestration.cloud.configuration import PIPELINES
from orchestration.cloud.target import VertexTarget, decode_target
from orchestration.cloud.vertex import connect, service_errors

DIGEST = "digest"  # label of a scheduled job
UNDER_WAY = {"PIPELINE_STATE_QUEUED", "PIPELINE_STATE_PENDING", "PIPELINE_STATE_RUNNING"}


class Compiled(NamedTuple):
    """A pipeline that can run on Vertex AI."""

    pipeline: str  # bootstrap, retrain or tune
    yaml: Path
    parameters: dict[str, Any]
    root: str  # gs:// folder of the runs' own files


class Scheduled(NamedTuple):
    """One schedule of a pipeline."""

    name: str
    state: str
    cron: str
    next_run: str


def jobs_of(vertex: str) -> "VertexJobs":
    """The jobs of the environment whose `VertexTarget` is `vertex`, as JSON."""
    return VertexJobs(decode_target(vertex))


class VertexJobs:
    """One environment's runs and schedules. Every change returns a sentence about what it did."""

    def __init__(self, target: VertexTarget) -> None:
        self._target = target
        connect(target)

    def display_name(self, pipeline: str) -> str:
        """The name of a pipeline's runs and schedules."""
        return f"{self._target.name}-{pipeline}"

    def submit(self, compiled: Compiled, job_id: str) -> str:
        """Runs a pipeline under `job_id`. If this environment has a run of that id already, nothing is started.

        Raises InputError if the id belongs to another environment of the project, or to another pipeline.
        """
        with service_errors():
            job = self._job(compiled, job_id)
            try:
                job.submit(service_account=self._target.pipelines_account or None)
            except exceptions.Conflict:  # the REST form of AlreadyExists
                there = aiplatform.PipelineJob.get(job_id).display_name
                if there != self.display_name(compiled.pipeline):
                    raise InputError(f"job id: one that is free, got {job_id!r}, which is a run of {there}") from None
                return f"{job_id} was submitted before"
            return f"{job_id} is submitted"

    def schedule(self, compiled: Compiled, cron: str, digest: str) -> str:
        """Creates or updates the schedule of a pipeline; at most one run of it is active.

        The service can change the times of a schedule, but not its pipeline. If `digest` (of the pipeline and its
        parameters) differs, the new schedule is created before the old one is deleted. A paused schedule stays paused.
        If two clients create one at the same time, the later one stays.
        """
        pipeline = compiled.pipeline
        with service_errors():
            found = self._schedules(pipeline)
            paused = any(one.state == types.Schedule.State.PAUSED for one in found)
            but = ", but paused" if paused else ""
            if len(found) == 1 and _scheduled_digest(found[0]) == digest:
                if found[0].cron == cron:
                    return f"{pipeline} is scheduled already{but}: {cron}"
                found[0].update(cron=cron, max_concurrent_run_count=1)
                return f"the schedule of {pipeline} is now {cron}{but}"
            job = self._job(compiled, None, {DIGEST: digest})
            job.create_schedule(
                display_name=self.display_name(pipeline),
                cron=cron,
                max_concurrent_run_count=1,
                service_account=self._target.pipelines_account or None,
            )
            newest, *others = self._schedules(pipeline)
            if paused:
                newest.pause()
            for other in others:
                with suppress(exceptions.NotFound):  # a client that created one at the same time deleted it
                    other.delete()
            return f"{pipeline} is scheduled{', in place of the old schedule' if found else ''}{but}: {cron}"

    def pause_schedule(self, pipeline: str) -> str:
        """Pauses the schedule of a pipeline. Raises InputError if there is none."""
        with service_errors():
            for schedule in self._needed_schedules(pipeline):
                if schedule.state != types.Schedule.State.PAUSED:
                    schedule.pause()
            return f"the schedule of {pipeline} is paused"

    def resume_schedule(self, pipeline: str) -> str:
        """Resumes the schedule of a pipeline, without the missed runs. Raises InputError if there is none."""
        with service_errors():
            for schedule in self._needed_schedules(pipeline):
                if schedule.state == types.Schedule.State.PAUSED:
                    schedule.resume(catch_up=False)
            return f"the schedule of {pipeline} is resumed"

    def delete_schedule(self, pipeline: str) -> str:
        """Deletes the schedule of a pipeline. Raises InputError if there is none."""
        with service_errors():
            for schedule in self._needed_schedules(pipeline):
                schedule.delete()
            return f"the schedule of {pipeline} is deleted"

    def schedules(self) -> list[Scheduled]:
        """The schedules of this environment."""
        with service_errors():
            return [
                Scheduled(one.display_name, one.state.name, one.cron, one.to_dict().get("nextRunTime", ""))
                for pipeline in PIPELINES
                for one in self._schedules(pipeline)
            ]

    def runs(self, pipeline: str) -> list[tuple[str, str]]:
        """Ids and states of this environment's runs of a pipeline, newest first."""
        with service_errors():
            jobs = aiplatform.PipelineJob.list(
                filter=f'display_name="{self.display_name(pipeline)}"', order_by="create_time desc"
            )
            return [(job.name, job.state.name) for job in jobs]

    def under_way(self) -> str | None:
        """The id of this environment's run of any pipeline that has not ended, if there is one."""
        with service_errors():
            for pipeline in PIPELINES:
                for name, state in self.runs(pipeline):
                    if state in UNDER_WAY:
                        return name
            return None

    def best_trial(self, gcp_resources: str) -> tuple[dict[str, float | int | str | bool], float]:
        """The hyperparameters and the metric of the best trial of a tuning job.

        Args:
          gcp_resources: the job, as Google Cloud's components name it: JSON with a `resourceUri`.

        Raises OperationError if no trial reported a metric.
        """
        (resource,) = msgspec.json.decode(gcp_resources)["resources"]
        with service_errors():
            job = aiplatform.HyperparameterTuningJob.get(resource["resourceUri"].partition("/v1/")[2])
            done = [trial for trial in job.trials if trial.final_measurement.metrics]
            if not done:
                raise OperationError(f"{job.display_name}: none of {len(job.trials)} trials reported a metric")
            best = max(done, key=lambda trial: trial.final_measurement.metrics[0].value)
            # A parameter's id is a flag of the trainer, which spells it with hyphens.
            found = {one.parameter_id.replace("-", "_"): one.value for one in best.parameters}
            return found, best.final_measurement.metrics[0].value

    def _job(
        self, compiled: Compiled, job_id: str | None, labels: dict[str, str] | None = None
    ) -> aiplatform.PipelineJob:
        return aiplatform.PipelineJob(
            display_name=self.display_name(compiled.pipeline),
            template_path=str(compiled.yaml),
            job_id=job_id,
            pipeline_root=compiled.root,
            parameter_values=compiled.parameters,
            enable_caching=False,
            labels=labels,
        )

    def _schedules(self, pipeline: str) -> list[aiplatform.PipelineJobSchedule]:
        """The newest one first; there may be several while clients create them at the same time."""
        found = aiplatform.PipelineJobSchedule.list(filter=f'display_name="{self.display_name(pipeline)}"')
        return sorted(found, key=lambda one: (one.create_time, one.name), reverse=True)

    def _needed_schedules(self, pipeline: str) -> list[aiplatform.PipelineJobSchedule]:
        found = self._schedules(pipeline)
        if not found:
            raise InputError(f"{self._target.name} has no schedule of {pipeline!r} in {self._target.project}")
        return found


def _scheduled_digest(schedule: aiplatform.PipelineJobSchedule) -> str | None:
    job = schedule.to_dict().get("createPipelineJobRequest", {}).get("pipelineJob", {})
    digest: str | None = job.get("labels", {}).get(DIGEST)
    return digest

"""The KFP tasks of one environment: the pipelines' own components, and Google Cloud's for the long work.

Environments differ only in the long work. On `gcp` it runs in Google Cloud's components: Dataflow flex templates for the
Beam jobs, a CustomJob for training, a tuning job for the search. On `emulators` the same Beam jobs run on this machine
with the same parameters. On `local` each step does its work itself, on the embedded event log and warehouse.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from kfp import dsl

from orchestration.cloud.configuration import Configuration
from orchestration.pipelines import components

LOCAL_IMAGE = "python:3.11"  # stands in the YAML; local runs use this interpreter
METRIC = "reward"  # that a trial of the trainer reports


class Environment:
    """Makes the tasks of the pipelines for one configuration, inside the body of a KFP pipeline."""

    def __init__(self, configuration: Configuration) -> None:
        self.cloud = configuration.cloud
        self.vertex = msgspec.json.encode(self.cloud.target).decode() if self.cloud else ""
        self.warehouse = configuration.warehouse
        self.watermark = configuration.watermark
        self._image = self.cloud.image("orchestration") if self.cloud else LOCAL_IMAGE
        self._components: dict[str, Any] = {}

    def pipeline_name(self, pipeline: str) -> str:
        """The name in the YAML of a pipeline; Vertex AI keeps the lineage of its runs by it, for a whole project."""
        return f"{self.cloud.name}-{pipeline}" if self.cloud else pipeline

    def task(self, step: Callable[..., Any], **inputs: Any) -> Any:
        """A task of one of the functions in `orchestration.pipelines.components`."""
        if step.__name__ not in self._components:
            self._components[step.__name__] = components.make(step, self._image)
        return _uncached(self._components[step.__name__], **inputs)

    def train(self, plan: Any, algorithm: Any, hyperparameters: Any, exploration: Any, *, fresh: bool) -> Any:
        """The version of the policy that `components.train` makes: in the cloud by a CustomJob on its own machine."""
        component = components.make(components.train, self._image)
        if self.cloud is not None:
            from google_cloud_pipeline_components.v1.custom_job import create_custom_training_job_from_component

            component = create_custom_training_job_from_component(
                component,
                display_name=f"{self.cloud.name}-train",
                machine_type=self.cloud.training_machine_type,
                service_account=self.cloud.account("trainer"),
            )
        task = _uncached(
            component,
            plan=plan,
            algorithm=algorithm,
            hyperparameters=hyperparameters,
            exploration=exploration,
            fresh=fresh,
        )
        return task.outputs["Output"]  # a CustomJob has further outputs

    @contextmanager
    def reported(self, pipeline: str, root: Any) -> Iterator[str]:
        """Adds an exit handler to the tasks made inside: it reports the outcome of the run. Yields the run's id."""
        run_id = dsl.PIPELINE_JOB_NAME_PLACEHOLDER
        last = self.task(components.report_outcome, root=root, run_id=run_id, pipeline=pipeline, vertex=self.vertex)
        with dsl.ExitHandler(last, name="run"):
            yield run_id

    def generate_and_export(self, plan: Any, root: Any) -> Any:
        """Whether the decisions of a bootstrap were generated, and its window exported and accepted by the guard."""
        if not self.warehouse:
            generated = self.task(components.generate, plan=plan)
            return self._audited(plan, self.task(components.export_windows, plan=generated.output).output)
        jobs = self.task(components.bootstrap_jobs, plan=plan, root_uri=self._root_uri(root), warehouse=self.warehouse)
        ended = self._run_jobs(plan, jobs, "generate_movielens", "ingest_events", "export_trajectories")
        return self._audited(plan, self.task(components.exported, plan=plan, jobs=ended).output)

    def export(self, plan: Any, root: Any) -> Any:
        """Whether the windows of the plan were exported, accepted by the guard, and speak for the version on probation."""
        if not self.warehouse:
            return self._watched(plan, self._audited(plan, self.task(components.export_windows, plan=plan).output))
        jobs = self.task(
            components.export_jobs,
            plan=plan,
            root_uri=self._root_uri(root),
            warehouse=self.warehouse,
            watermark=self.watermark,
        )
        ended = self._run_jobs(plan, jobs, "export_trajectories")
        return self._watched(plan, self._audited(plan, self.task(components.exported, plan=plan, jobs=ended).output))

    def _audited(self, plan: Any, exported: Any) -> Any:
        return self.task(components.audit, plan=plan, exported=exported, warehouse=self.warehouse).output

    def _watched(self, plan: Any, exported: Any) -> Any:
        return self.task(
            components.watch, plan=plan, exported=exported, warehouse=self.warehouse, vertex=self.vertex
        ).output

    def find_best(self, plan: Any, exported: Any, algorithm: Any, budget: Any) -> Any:
        """The best hyperparameters: of a tuning job in the cloud, elsewhere of a search within the step.

        Starts after the task whose output is `exported`.
        """
        if self.cloud is None:
            search = self.task(components.search, plan=plan, algorithm=algorithm, budget=budget)
            return search.after(exported.task).output
        from google_cloud_pipeline_components.v1 import hyperparameter_tuning_job as job

        # A step makes the study, because its parameters depend on the algorithm, which is known only at run time.
        study = self.task(
            components.study,
            plan=plan,
            algorithm=algorithm,
            budget=budget,
            root_uri=self.cloud.root_uri,
            image=self.cloud.image("orchestration"),
            machine_type=self.cloud.training_machine_type,
        ).after(exported.task)
        tuned = _uncached(
            job.HyperparameterTuningJobRunOp,
            display_name=f"{self.cloud.name}-tune",
            location=self.cloud.location,
            base_output_directory=f"{self.cloud.root_uri}/studies",
            worker_pool_specs=study.outputs["pools"],
            study_spec_metrics=job.serialize_metrics({METRIC: "maximize"}),
            study_spec_parameters=study.outputs["parameters"],
            max_trial_count=study.outputs["trials"],
            parallel_trial_count=self.cloud.parallel_trials,
            service_account=self.cloud.account("trainer"),
        )
        resources = tuned.outputs["gcp_resources"]
        return self.task(components.best_trial, plan=plan, gcp_resources=resources, vertex=self.vertex).output

    def _root_uri(self, root: Any) -> Any:
        """The root as the Beam jobs address it."""
        return self.cloud.root_uri if self.cloud else root

    def _run_jobs(self, plan: Any, jobs: Any, *names: str) -> Any:
        """Runs the Beam jobs `names` of each window in this order. Returns a list that is complete when all ended."""
        if self.cloud is None:
            # No ParallelFor: within a loop, KFP's local runner also substitutes the loop's item for every other input.
            return self.task(components.run_jobs, plan=plan, jobs=jobs.output).output
        with dsl.ParallelFor(items=jobs.output, name="windows") as job:
            ended = self._dataflow(names[0], getattr(job, names[0]))
            for name in names[1:]:
                ended = self._dataflow(name, getattr(job, name), after=ended)
        return dsl.Collected(ended.outputs["gcp_resources"])

    def _dataflow(self, template: str, parameters: Any, after: Any = None) -> Any:
        """Launches the flex template of a Beam job once `after` has ended, and waits until the job has ended."""
        from google_cloud_pipeline_components.v1.dataflow import DataflowFlexTemplateJobOp
        from google_cloud_pipeline_components.v1.wait_gcp_resources import WaitGcpResourcesOp

        assert self.cloud is not None
        launched = _uncached(
            DataflowFlexTemplateJobOp,
            container_spec_gcs_path=f"{self.cloud.template_folder}/{template}.json",
            location=self.cloud.location,
            # Dataflow refuses two running jobs of one name; the id of a task is unique.
            job_name=f"{self.cloud.name}-{template.replace('_', '-')}-{dsl.PIPELINE_TASK_ID_PLACEHOLDER}",
            parameters=parameters,
            max_workers=self.cloud.max_workers,
            service_account_email=self.cloud.account("dataflow"),
            sdk_container_image=self.cloud.image(template),  # launcher and worker share one image
            temp_location=f"{self.cloud.root_uri}/temp",
            subnetwork=self.cloud.subnetwork,
            ip_configuration="WORKER_IP_PRIVATE",
        )
        if after is not None:
            launched.after(after)
        return _uncached(WaitGcpResourcesOp, gcp_resources=launched.outputs["gcp_resources"])


def _uncached(component: Any, **inputs: Any) -> Any:
    """A task that KFP never answers from its cache: a step also reads the stores, which are not among its inputs."""
    return component(**inputs).set_caching_options(False)

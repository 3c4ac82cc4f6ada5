"""A small Vertex AI on this machine, for tests: the real SDK talks REST to it. See README.md for what that proves."""

import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from google.api_core.exceptions import (
    AlreadyExists,
    FailedPrecondition,
    GoogleAPICallError,
    InvalidArgument,
    NotFound,
)
from google.cloud.aiplatform_v1 import types
from google.protobuf import any_pb2, json_format

ALIAS = re.compile(r"[a-z][a-zA-Z0-9-]{0,126}[a-z0-9]")
LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
RESOURCE_ID = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?|[0-9]{1,10}")
JOB_ID = re.compile(r"[a-z][-a-z0-9]{0,127}")
START_SECONDS = 180
PROJECT_NUMBER = "4711"


class Predictor(NamedTuple):
    """A deployed model's process."""

    process: subprocess.Popen
    url: str


class LocalVertex:
    """The resources, and the processes that they stand for."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.models: dict[str, dict[str, types.Model]] = {}  # by id, then by version number
        self.endpoints: dict[str, types.Endpoint] = {}
        self.pipeline_jobs: dict[str, types.PipelineJob] = {}
        self.schedules: dict[str, types.Schedule] = {}
        self.custom_jobs: dict[str, types.CustomJob] = {}
        self.tuning_jobs: dict[str, types.HyperparameterTuningJob] = {}
        self.predictors: dict[str, Predictor] = {}  # by id of the deployed model
        self.started = 0
        self._folder = folder
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._numbers = iter(range(1000, 10**6))

    def close(self) -> None:
        """Ends the predictors."""
        for predictor in self.predictors.values():
            predictor.process.terminate()
        for predictor in self.predictors.values():
            predictor.process.wait(30)

    def path(self, uri: str) -> str:
        """The folder that stands for a folder in Cloud Storage."""
        return uri.replace("gs://", f"{self._folder}/", 1)

    def answer(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> Any:
        """The message (or a plain JSON value) that a request is answered with. Raises GoogleAPICallError."""
        if method == "GET" and (bucket := re.fullmatch("/storage/v1/b/([^/]+)", path)):
            return {"name": bucket[1], "projectNumber": PROJECT_NUMBER}  # Cloud Storage: every bucket is there
        for wanted, pattern, handle in self._routes():
            if wanted == method and (match := re.fullmatch(f"/v1/(projects/[^/]+/locations/[^/]+){pattern}", path)):
                return handle(match, query, body)
        raise NotFound(f"no such method here: {method} {path}")

    def _routes(self) -> list[tuple[str, str, Callable[..., Any]]]:
        return [
            ("POST", "/models:upload", self._upload),
            ("GET", "/models/([^/:@]+)(?:@([^/:]+))?", self._get_model),
            ("GET", "/models/([^/:@]+)(?:@[^/:]+)?:listVersions", self._list_versions),
            ("POST", "/models/([^/:@]+)@([^/:]+):mergeVersionAliases", self._merge_aliases),
            ("PATCH", "/models/([^/:@]+)@([^/:]+)", self._update_model),
            ("POST", "/endpoints", self._create_endpoint),
            ("GET", "/endpoints/([^/:]+)", self._get_endpoint),
            ("PATCH", "/endpoints/([^/:]+)", self._update_endpoint),
            ("POST", "/endpoints/([^/:]+):deployModel", self._deploy),
            ("POST", "/endpoints/([^/:]+):undeployModel", self._undeploy),
            ("POST", "/endpoints/([^/:]+):predict", self._predict),
            ("POST", "/pipelineJobs", self._create_pipeline_job),
            ("GET", "/pipelineJobs", self._list_pipeline_jobs),
            ("GET", "/pipelineJobs/([^/:]+)", self._get_pipeline_job),
            ("POST", "/schedules", self._create_schedule),
            ("GET", "/schedules", self._list_schedules),
            ("GET", "/schedules/([^/:]+)", self._get_schedule),
            ("PATCH", "/schedules/([^/:]+)", self._update_schedule),
            ("POST", "/schedules/([^/:]+):(pause|resume)", self._pause_or_resume),
            ("DELETE", "/schedules/([^/:]+)", self._delete_schedule),
            ("POST", "/customJobs", self._create_custom_job),
            ("GET", "/customJobs/([^/:]+)", self._get_custom_job),
            ("POST", "/hyperparameterTuningJobs", self._create_tuning_job),
            ("GET", "/hyperparameterTuningJobs/([^/:]+)", self._get_tuning_job),
        ]

    # Models.

    def _upload(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        request = _parse(types.UploadModelRequest, body)
        model = request.model
        for key, value in model.labels.items():
            if not LABEL_KEY.fullmatch(key) or not LABEL_VALUE.fullmatch(value):
                raise InvalidArgument(f"label {key}={value} is not one")
        for alias in model.version_aliases:
            if not ALIAS.fullmatch(alias):
                raise InvalidArgument(f"version alias {alias} is not one")
        if not model.container_spec.image_uri:
            raise InvalidArgument("container_spec.image_uri is missing")
        with self._lock:
            if request.parent_model:
                name = request.parent_model.rpartition("/")[2]
                if name not in self.models:
                    raise NotFound(f"model {name} is not there")
            else:
                name = request.model_id or str(next(self._numbers))
                if not RESOURCE_ID.fullmatch(name):
                    raise InvalidArgument(f"model id {name} is not one")
                if name in self.models:
                    raise AlreadyExists(f"model {name} is there already")
                self.models[name] = {}
            versions = self.models[name]
            taken = {alias for version in versions.values() for alias in version.version_aliases}
            if both := taken & set(model.version_aliases):
                raise FailedPrecondition(f"version aliases {both} are of another version")
            number = str(len(versions) + 1)
            model.name, model.version_id = f"{match[1]}/models/{name}", number
            model.supported_deployment_resources_types = [types.Model.DeploymentResourcesType.DEDICATED_RESOURCES]
            if not versions:
                model.version_aliases.append("default")
            versions[number] = model
        return _done(types.UploadModelResponse(model=model.name, model_version_id=number))

    def _version(self, name: str, version: str | None) -> types.Model:
        versions = self.models.get(name, {})
        for number, model in versions.items():
            if version == number or (version or "default") in model.version_aliases:
                return model
        raise NotFound(f"model {name}@{version or 'default'} is not there")

    def _get_model(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        return self._version(match[2], match[3])

    def _update_model(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        """A version's description: without the version in its name, an update is one of the parent, which has none."""
        update = _parse(types.Model, body)
        if query.get("updateMask") != "versionDescription":
            raise InvalidArgument(f"updateMask {query.get('updateMask')} is not served here")
        with self._lock:
            model = self._version(match[2], match[3])
            model.version_description = update.version_description
        return model

    def _list_versions(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        return types.ListModelVersionsResponse(models=list(self.models.get(match[2], {}).values()))

    def _merge_aliases(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        request = _parse(types.MergeVersionAliasesRequest, body)
        with self._lock:
            model = self._version(match[2], match[3])
            for alias in request.version_aliases:
                if alias.startswith("-"):
                    if alias[1:] not in model.version_aliases:
                        raise InvalidArgument(f"version alias {alias[1:]} is not of version {model.version_id}")
                    model.version_aliases.remove(alias[1:])
                    continue
                if not ALIAS.fullmatch(alias):
                    raise InvalidArgument(f"version alias {alias} is not one")
                for other in self.models[match[2]].values():
                    if other is not model and alias in other.version_aliases:
                        raise FailedPrecondition(f"version alias {alias} is of version {other.version_id}")
                if alias not in model.version_aliases:
                    model.version_aliases.append(alias)
        return model

    # Endpoints.

    def _create_endpoint(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        endpoint = _parse(types.Endpoint, body)
        with self._lock:
            name = query.get("endpointId") or str(next(self._numbers))
            if not RESOURCE_ID.fullmatch(name):
                raise InvalidArgument(f"endpoint id {name} is not one")
            if name in self.endpoints:
                raise AlreadyExists(f"endpoint {name} is there already")
            endpoint.name = f"{match[1]}/endpoints/{name}"
            self.endpoints[name] = endpoint
        return _done(endpoint)

    def _endpoint(self, name: str) -> types.Endpoint:
        if name not in self.endpoints:
            raise NotFound(f"endpoint {name} is not there")
        return self.endpoints[name]

    def _get_endpoint(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        return self._endpoint(match[2])

    def _update_endpoint(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        update = _parse(types.Endpoint, body)
        if query.get("updateMask") != "trafficSplit":
            raise InvalidArgument(f"updateMask {query.get('updateMask')} is not served here")
        with self._lock:
            endpoint = self._endpoint(match[2])
            _check_split(update.traffic_split, {one.id for one in endpoint.deployed_models})
            endpoint.traffic_split = update.traffic_split
        return endpoint

    def _deploy(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        request = _parse(types.DeployModelRequest, body)
        deployed = request.deployed_model
        if not deployed.dedicated_resources.machine_spec.machine_type:
            raise InvalidArgument("deployed_model.dedicated_resources.machine_spec.machine_type is missing")
        name, _, version = deployed.model.rpartition("/")[2].partition("@")
        with self._lock:
            endpoint = self._endpoint(match[2])
            model = self._version(name, version or None)
            deployed.id = str(next(self._numbers))
            deployed.model_version_id = model.version_id
            split = {deployed.id if key == "0" else key: value for key, value in request.traffic_split.items()}
            _check_split(split, {deployed.id, *(one.id for one in endpoint.deployed_models)})
        predictor = self._start(model, deployed.id)
        with self._lock:
            self.predictors[deployed.id] = predictor
            endpoint.deployed_models.append(deployed)
            endpoint.traffic_split = split
        return _done(types.DeployModelResponse(deployed_model=deployed))

    def _undeploy(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        request = _parse(types.UndeployModelRequest, body)
        with self._lock:
            endpoint = self._endpoint(match[2])
            left = [one for one in endpoint.deployed_models if one.id != request.deployed_model_id]
            if len(left) == len(endpoint.deployed_models):
                raise NotFound(f"deployed model {request.deployed_model_id} is not there")
            split = dict(request.traffic_split) or {
                key: value for key, value in endpoint.traffic_split.items() if key != request.deployed_model_id
            }
            if left:
                _check_split(split, {one.id for one in left})
            endpoint.deployed_models = left
            endpoint.traffic_split = split
            predictor = self.predictors.pop(request.deployed_model_id)
        predictor.process.terminate()
        predictor.process.wait(30)
        return _done(types.UndeployModelResponse())

    def _predict(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        _parse(types.PredictRequest, body)
        with self._lock:
            endpoint = self._endpoint(match[2])
            if not endpoint.traffic_split:
                raise FailedPrecondition(f"endpoint {match[2]} has no deployed model")
            ids, weights = zip(*endpoint.traffic_split.items(), strict=True)
            (chosen,) = self._random.choices(ids, weights)
            url = self.predictors[chosen].url
        request = urllib.request.Request(
            f"{url}/predict", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise InvalidArgument(f"the model answered {error.code}: {error.read().decode()}") from None
        return {"predictions": answer["predictions"], "deployedModelId": chosen}

    def _start(self, model: types.Model, deployed_id: str) -> Predictor:
        """The serving container's arguments and variables, in a process; it must become healthy."""
        spec = model.container_spec
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        variables = {
            "AIP_HTTP_PORT": str(port),
            # The service's own copy of the policy, which the account of the replicas may not read.
            "AIP_STORAGE_URI": f"{self._folder}/no-access/{model.artifact_uri.rpartition('/')[2]}",
            "AIP_HEALTH_ROUTE": spec.health_route,
            "AIP_PREDICT_ROUTE": spec.predict_route,
            **{variable.name: variable.value for variable in spec.env},
        }
        command = [sys.executable, "-m", "predictor.app", "--host", "127.0.0.1", *map(self.path, spec.args)]
        with (self._folder / f"predictor-{deployed_id}.log").open("wb") as log:
            process = subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log)
        self.started += 1
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(url + spec.health_route, timeout=5) as health:
                if health.status == 200:
                    return Predictor(process, url)
            time.sleep(0.05)
        process.kill()
        process.wait()
        raise FailedPrecondition(f"the model did not become healthy: {Path(log.name).read_text()[-500:]}")

    # Pipelines and their schedules.

    def _create_pipeline_job(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        job = _parse(types.PipelineJob, body)
        name = query.get("pipelineJobId") or str(next(self._numbers))
        if not JOB_ID.fullmatch(name):
            raise InvalidArgument(f"pipeline job id {name} is not one")
        with self._lock:
            if name in self.pipeline_jobs:
                raise AlreadyExists(f"pipeline job {name} is there already")
            job.name = f"{match[1]}/pipelineJobs/{name}"
            job.state = types.PipelineState.PIPELINE_STATE_PENDING
            self.pipeline_jobs[name] = job
        return job

    def _list_pipeline_jobs(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        found = [job for job in self.pipeline_jobs.values() if _named(job, query)]
        return types.ListPipelineJobsResponse(pipeline_jobs=found)

    def _get_pipeline_job(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        if match[2] not in self.pipeline_jobs:
            raise NotFound(f"pipeline job {match[2]} is not there")
        return self.pipeline_jobs[match[2]]

    def _create_schedule(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        schedule = _parse(types.Schedule, body)
        _check_schedule(schedule)
        with self._lock:
            name = str(next(self._numbers))
            schedule.name = f"{match[1]}/schedules/{name}"
            schedule.state = types.Schedule.State.ACTIVE
            schedule.create_time = datetime.now(UTC)
            self.schedules[name] = schedule
        return schedule

    def _schedule(self, name: str) -> types.Schedule:
        if name not in self.schedules:
            raise NotFound(f"schedule {name} is not there")
        return self.schedules[name]

    def _list_schedules(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        return types.ListSchedulesResponse(schedules=[one for one in self.schedules.values() if _named(one, query)])

    def _get_schedule(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        return self._schedule(match[2])

    def _update_schedule(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        update = _parse(types.Schedule, body)
        with self._lock:
            schedule = self._schedule(match[2])
            for field in query["updateMask"].split(","):
                name = re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", field)
                setattr(schedule, name, getattr(update, name))
            _check_schedule(schedule)
        return schedule

    def _pause_or_resume(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        states = types.Schedule.State
        with self._lock:
            schedule = self._schedule(match[2])
            wanted = states.PAUSED if match[3] == "pause" else states.ACTIVE
            if schedule.state == wanted:
                raise FailedPrecondition(f"schedule {match[2]} is {wanted.name} already")
            schedule.state = wanted
        return {}

    def _delete_schedule(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        with self._lock:
            self._schedule(match[2])
            del self.schedules[match[2]]
        return _done(types.DeleteOperationMetadata(), empty=True)

    # Custom training.

    def _create_custom_job(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        job = _parse(types.CustomJob, body)
        (pool,) = job.job_spec.worker_pool_specs
        container = pool.container_spec
        output = self.path(job.job_spec.base_output_directory.output_uri_prefix)
        variables = {variable.name: variable.value for variable in container.env}
        if output:
            variables |= {
                "AIP_MODEL_DIR": f"{output}/model/",
                "AIP_CHECKPOINT_DIR": f"{output}/checkpoints/",
                "AIP_TENSORBOARD_LOG_DIR": f"{output}/logs/",
            }
        command = [sys.executable if part == "python" else part for part in (*container.command, *container.args)]
        with self._lock:
            name = str(next(self._numbers))
            job.name = f"{match[1]}/customJobs/{name}"
            job.state = types.JobState.JOB_STATE_RUNNING
            self.custom_jobs[name] = job

        def run() -> None:
            done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
            if done.returncode:
                job.error.message = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no output"
            states = types.JobState
            job.state = states.JOB_STATE_FAILED if done.returncode else states.JOB_STATE_SUCCEEDED

        threading.Thread(target=run).start()
        return job

    def _get_custom_job(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        if match[2] not in self.custom_jobs:
            raise NotFound(f"custom job {match[2]} is not there")
        return self.custom_jobs[match[2]]

    # Hyperparameter tuning: random search, one trial after the other.

    def _create_tuning_job(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        job = _parse(types.HyperparameterTuningJob, body)
        with self._lock:
            name = str(next(self._numbers))
            job.name = f"{match[1]}/hyperparameterTuningJobs/{name}"
            job.state = types.JobState.JOB_STATE_RUNNING
            self.tuning_jobs[name] = job
        threading.Thread(target=self._tune, args=(job,)).start()
        return job

    def _tune(self, job: types.HyperparameterTuningJob) -> None:
        (pool,) = job.trial_job_spec.worker_pool_specs
        container = pool.container_spec
        (metric,) = job.study_spec.metrics
        states = types.JobState
        for number in range(1, job.max_trial_count + 1):
            chosen = self._suggest(job.study_spec.parameters)
            flags = [f"--{name}={_flag_value(value)}" for name, value in chosen.items()]
            command = [*container.command, *container.args, *flags]
            command = [sys.executable if part == "python" else self.path(part) for part in command]
            file = self._folder / f"trial-{number}.metrics"
            variables = {"CLOUD_ML_TRIAL_ID": str(number), "CLOUD_ML_HP_METRIC_FILE": str(file)}
            done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
            if done.returncode:
                job.error.message = done.stderr
                job.state = states.JOB_STATE_FAILED
                return
            reported = json.loads(file.read_text().splitlines()[-1])
            measured = types.Measurement.Metric(metric_id=metric.metric_id, value=float(reported[metric.metric_id]))
            trial = types.Trial(
                id=str(number),
                state=types.Trial.State.SUCCEEDED,
                parameters=[types.Trial.Parameter(parameter_id=name, value=value) for name, value in chosen.items()],
                final_measurement=types.Measurement(metrics=[measured]),
            )
            job.trials.append(trial)
        job.state = states.JOB_STATE_SUCCEEDED

    def _suggest(self, parameters: Any) -> dict[str, float | str]:
        """Values at random; a conditional parameter has one only if its parent has a value that it is declared for."""
        chosen: dict[str, float | str] = {}
        for parameter in parameters:
            name = parameter.parameter_id
            if parameter.categorical_value_spec.values:
                chosen[name] = self._random.choice(list(parameter.categorical_value_spec.values))
            elif parameter.discrete_value_spec.values:
                chosen[name] = self._random.choice(list(parameter.discrete_value_spec.values))
            else:
                bounds = parameter.double_value_spec
                chosen[name] = self._random.uniform(bounds.min_value, bounds.max_value)
            for nested in parameter.conditional_parameter_specs:
                categories = list(nested.parent_categorical_values.values)
                if chosen[name] in (categories or list(nested.parent_discrete_values.values)):
                    chosen |= self._suggest([nested.parameter_spec])
        return chosen

    def _get_tuning_job(self, match: re.Match, query: dict[str, str], body: dict[str, Any]) -> Any:
        if match[2] not in self.tuning_jobs:
            raise NotFound(f"hyperparameter tuning job {match[2]} is not there")
        return self.tuning_jobs[match[2]]


@contextlib.contextmanager
def local_vertex(folder: Path) -> Iterator[tuple[LocalVertex, str]]:
    """A server on a free port until the block ends, and its address."""
    vertex = LocalVertex(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            path, _, query = self.path.partition("?")
            length = int(self.headers.get("content-length") or 0)
            text = self.rfile.read(length)
            try:
                asked = {key: value for key, value in urllib.parse.parse_qsl(query) if not key.startswith("$")}
                found = vertex.answer(self.command, urllib.parse.unquote(path), asked, json.loads(text) if text else {})
                status, answer = 200, found if isinstance(found, dict) else json.loads(_json(found))
            except GoogleAPICallError as error:
                status = int(error.code or 500)
                name = error.grpc_status_code.name if error.grpc_status_code else "UNKNOWN"
                answer = {"error": {"code": status, "message": error.message, "status": name}}
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = _handle  # noqa: N815 - as http.server calls them

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield vertex, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        vertex.close()


def _parse(kind: Any, body: dict[str, Any]) -> Any:
    """`body` as the service's own message. Unknown fields and wrong values are refused, as the service does."""
    try:
        return kind(json_format.ParseDict(body, kind.pb(kind())))
    except json_format.ParseError as error:
        raise InvalidArgument(f"{kind.__name__}: {error}") from None


def _json(message: Any) -> str:
    return json_format.MessageToJson(getattr(message, "_pb", message))


def _done(message: Any, empty: bool = False) -> dict[str, Any]:
    """A long-running operation that has ended."""
    packed = any_pb2.Any()
    if empty:
        from google.protobuf import empty_pb2

        packed.Pack(empty_pb2.Empty())
    else:
        packed.Pack(message._pb)
    name = "projects/p/locations/l/operations/1"
    return {"name": name, "done": True, "response": json.loads(json_format.MessageToJson(packed))}


def _flag_value(value: float | str) -> str:
    """A whole number without its fraction: trainers declare the flag of a discrete parameter as an integer."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _check_split(split: Any, known: set[str]) -> None:
    if set(split) - known:
        raise InvalidArgument(f"traffic_split names deployed models that are not there: {set(split) - known}")
    if sum(split.values()) != 100:
        raise InvalidArgument(f"traffic_split must add up to 100, got {dict(split)}")


def _check_schedule(schedule: types.Schedule) -> None:
    fields = re.sub(r"^(CRON_)?TZ=\S+ ", "", schedule.cron).split()
    if len(fields) != 5:
        raise InvalidArgument(f"cron must have five fields, got {schedule.cron!r}")
    if schedule.max_concurrent_run_count < 1:
        raise InvalidArgument("max_concurrent_run_count must be 1 or more")


def _named(resource: Any, query: dict[str, str]) -> bool:
    wanted = re.fullmatch(r'display_name="(.*)"', query.get("filter", ""))
    return wanted is None or resource.display_name == wanted[1]

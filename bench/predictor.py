"""Serving, bodies of 8 distinct observations, 100 actions, rank 20: requests a second with every decision logged.

The reference, our server with the embedded event log, the same publishing to Pub/Sub's emulator, and the same server with
an empty handler take turns. The load tool is bench.load, in this process. The emulator stands for a service on machines
of its own, so it runs at the lowest priority; what publishing takes of the server's machine is ours. Beside the
throughput: latency at half load, memory over 100,000 requests, and whether each answered decision is in the log, once.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench import load
from bench.measure import compare
from bench.reference_predictor import NUM_ACTIONS, OBSERVATION_DIM
from contracts import event_segments, policies
from contracts.policies import Exploration, Movie, PolicyCard
from contracts.records import event_decoder
from orchestration import emulators
from orchestration.processes import free_port

INSTANCES = 8
CONNECTIONS = 8
SECONDS = 8.0
REFERENCE_SECONDS = 15.0
RUNS = 3


def run() -> dict[str, Any]:
    """All of it, in some four minutes."""
    requests = _requests()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as running:
        folder = Path(name)
        _write_policy(folder / "v1")
        _module("bench.reference_predictor", "save", folder / "reference")
        address = running.enter_context(emulators.pubsub_emulator(folder))
        _yield_the_cores()
        emulator = os.environ | {"PUBSUB_EMULATOR_HOST": address}
        theirs, ours = (running.enter_context(_topic(address, name)) for name in ("reference", "ours"))
        ports = [free_port() for _ in range(4)]
        reference, embedded, published, empty = ports
        server = ["-m", "predictor.app", "--policy", folder / "v1", "--events"]
        reference_command = ["-m", "bench.reference_predictor", "serve", folder / "reference", reference, theirs.name]
        reference_process = running.enter_context(_process(*reference_command, environment=emulator))
        process = running.enter_context(_process(*server, folder / "events", "--port", embedded))
        empty_process = running.enter_context(_process("-m", "bench.reference_predictor", "empty", empty))
        for port, started in ((reference, reference_process), (embedded, process), (empty, empty_process)):
            _wait_for(port, started)
            load.as_fast_as_answered(port, requests, 1, count=3)

        def throughput(port: int, seconds: float) -> float:
            # More than one would wait for each other at the reference: no more of them a second, only later.
            report = load.as_fast_as_answered(port, requests, 1 if port == reference else CONNECTIONS, seconds)
            assert not report.failures, report.failures[0]
            reports[port].append(report)
            return report.rate

        reports: dict[int, list[load.Report]] = {port: [] for port in ports}
        result: dict[str, Any] = dict(
            compare(
                lambda: throughput(reference, REFERENCE_SECONDS),
                lambda: throughput(embedded, SECONDS),
                "requests/s",
                RUNS,
            )
        )
        result["reference_p50_ms"] = float(np.median([r.milliseconds(0.5) for r in reports[reference]]))
        result["reference_p99_ms"] = float(np.median([r.milliseconds(0.99) for r in reports[reference]]))
        reference_process.kill()

        shares = []
        for _ in range(RUNS):
            nothing = throughput(empty, SECONDS)
            shares.append(throughput(embedded, SECONDS) / nothing)
            result["empty_handler"] = nothing
        result["share_of_empty_handler"] = float(np.median(shares))

        half = load.at_rate(embedded, requests, 64, result["ours"] / 2, 2 * SECONDS)
        assert not half.failures
        result |= {"half_load_p50_ms": half.milliseconds(0.5), "half_load_p99_ms": half.milliseconds(0.99)}

        before = _megabytes(process)
        many = load.as_fast_as_answered(embedded, requests, CONNECTIONS, count=100_000)
        assert not many.failures
        result["growth_mb_over_100k_requests"] = _megabytes(process) - before
        _stop(process)
        answered = [one for report in (*reports[embedded], half, many) for one in report.decision_ids]
        result |= {f"embedded_{k}": v for k, v in _account(answered, _logged(folder / "events")).items()}

        publishing = running.enter_context(
            _process(
                *(*server, folder / "spool", "--port", published, "--topic", ours.name, "--drain-seconds", 300),
                environment=emulator,
            )
        )
        _wait_for(published, publishing)
        result["ours_publishing"] = float(np.median([throughput(published, SECONDS) for _ in range(RUNS)]))
        half = load.at_rate(published, requests, 64, result["ours_publishing"] / 2, SECONDS)
        assert not half.failures
        for name, quantile in (("p50", 0.5), ("p99", 0.99)):
            result[f"publishing_half_load_{name}_ms"] = half.milliseconds(quantile)
        answered = [one for report in (*reports[published], half) for one in report.decision_ids]
        _stop(publishing)
        delivered = [event_decoder.decode(m).decision_id.encode() for m in ours.pull(len(answered))]
        result |= {f"publishing_{k}": v for k, v in _account(answered, delivered).items()}
    return result


def _yield_the_cores() -> None:
    """Leaves the processes that were started so far what the others do not want."""
    for process in psutil.Process().children(recursive=True):
        for thread in process.threads():
            os.setpriority(os.PRIO_PROCESS, thread.id, 19)  # a thread each: the kernel knows no other way


def _write_policy(folder: Path) -> None:
    """LinUCB with random parameters: what it has learned makes no difference to what it costs."""
    random = np.random.default_rng(20261122)
    half = random.normal(size=(NUM_ACTIONS, OBSERVATION_DIM, OBSERVATION_DIM))
    covariance = half @ half.transpose(0, 2, 1) / OBSERVATION_DIM + 0.1 * np.eye(OBSERVATION_DIM)
    folder.mkdir()
    np.savez(
        folder / policies.LINEAR_NAME,
        theta=random.normal(size=(NUM_ACTIONS, OBSERVATION_DIM)).astype(np.float32),
        covariance=covariance.astype(np.float32),
        num_samples=np.ones(NUM_ACTIONS, np.float32),
    )
    card = PolicyCard(
        version=folder.name,
        parent=None,
        algorithm="linucb",
        hyperparameters={},
        observation_dim=OBSERVATION_DIM,
        num_actions=NUM_ACTIONS,
        catalogue=[Movie(action=i, movie_id=str(i), title=f"Movie {i}") for i in range(NUM_ACTIONS)],
        trained_on=[],
        exploration=Exploration(),
    )
    (folder / policies.CARD_NAME).write_bytes(policies.encode_json(card))


class _Topic:
    """A topic of the emulator with one subscription, to see what arrives."""

    def __init__(self, publisher: Any, subscriber: Any, name: str) -> None:
        self._subscriber = subscriber
        self.name = f"projects/bench/topics/{name}"
        self._subscription = f"projects/bench/subscriptions/{name}"
        publisher.create_topic(name=self.name)
        subscriber.create_subscription(name=self._subscription, topic=self.name, ack_deadline_seconds=60)

    def pull(self, at_least: int) -> list[bytes]:
        """What is there once `at_least` messages are, or five minutes are over."""
        from google.api_core.exceptions import DeadlineExceeded

        messages: list[bytes] = []
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            received = []
            with contextlib.suppress(DeadlineExceeded):
                pull = self._subscriber.pull(subscription=self._subscription, max_messages=1000, timeout=3, retry=None)
                received = pull.received_messages
            if received:
                messages += [one.message.data for one in received]
                ack_ids = [one.ack_id for one in received]
                self._subscriber.acknowledge(subscription=self._subscription, ack_ids=ack_ids)
            elif len(messages) >= at_least:
                break
        return messages


@contextlib.contextmanager
def _topic(address: str, name: str) -> Iterator[_Topic]:
    from google.cloud import pubsub_v1

    with emulators.redirect(pubsub=address):
        publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
    with publisher, subscriber:
        yield _Topic(publisher, subscriber, name)


def _account(answered: list[bytes], logged: list[bytes]) -> dict[str, int]:
    return {
        "decisions_answered": len(answered),
        "decisions_lost": len(set(answered) - set(logged)),
        "decisions_twice": len(logged) - len(set(logged)),
    }


def _requests() -> list[bytes]:
    """1,000 requests, each of 8 observations that occur nowhere else."""
    random = np.random.default_rng(20261122)
    observations = random.normal(size=(1000, INSTANCES, OBSERVATION_DIM)).astype(np.float32).tolist()
    return [
        load.post("/predict", json.dumps({"instances": [{"observation": one} for one in body]}).encode())
        for body in observations
    ]


def _logged(folder: Path) -> list[bytes]:
    return [
        event_decoder.decode(line).decision_id.encode()
        for segment in event_segments.sealed_segments(folder)
        for line in segment.read_bytes().splitlines()
    ]


@contextlib.contextmanager
def _process(*arguments: object, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, *map(str, arguments)], env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def _module(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", *map(str, arguments)], check=True, stderr=subprocess.DEVNULL)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    assert process.wait(400) == 0


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:  # the reference has no such route, but it is there
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"no server on port {port}")


def _megabytes(process: "subprocess.Popen[bytes]") -> float:
    return float(psutil.Process(process.pid).memory_info().rss) / 1e6

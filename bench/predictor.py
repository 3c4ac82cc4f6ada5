"""Serving, bodies of 8 distinct observations, 100 actions, rank 20: requests a second with every decision logged.

The reference, our server with the embedded event log, the same publishing to Pub/Sub's emulator, and the same server with
an empty handler take turns. The load tool is bench.load, in this process. The emulator stands for a service on machines
of its own, so it gets what the others leave; what publishing takes of the server's machine is ours. Beside the
throughput: latency at half load, memory over 100,000 requests, whether each answered decision is in the log, once, and
how old the oldest answered decision is that SIGKILL takes from the embedded log.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench import load
from bench.measure import compare
from bench.reference_predictor import NUM_ACTIONS, OBSERVATION_DIM
from contracts import event_segments, policies
from contracts.items import Item
from contracts.policies import Exploration, PolicyCard
from contracts.records import event_decoder
from orchestration.emulators.redirect import redirect
from orchestration.emulators.servers import pubsub_program
from orchestration.processes import free_port

INSTANCES = 8
CONNECTIONS = 8
SECONDS = 8.0
REFERENCE_SECONDS = 15.0
RUNS = 3
SHORT_RUNS, SHORT_SECONDS = 8, 4.0  # for what varies much
KILLS, KILL_AFTER_SECONDS = 10, 2.0


def run() -> dict[str, Any]:
    """All of it, in some seven minutes."""
    requests = _requests()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as running:
        folder = Path(name)
        _write_policy(folder / "v1")
        _module("bench.reference_predictor", "save", folder / "reference")
        address = running.enter_context(_pubsub_emulator(folder))
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
        for _ in range(SHORT_RUNS):
            nothing = throughput(empty, SHORT_SECONDS)
            shares.append(throughput(embedded, SHORT_SECONDS) / nothing)
        result["empty_handler"] = float(np.median([report.rate for report in reports[empty]]))
        result["share_of_empty_handler"] = float(np.median(shares))
        result["share_min"], result["share_max"] = min(shares), max(shares)

        def half_load(port: int, rate: float, after_each: Callable[[], object] = lambda: None) -> dict[str, float]:
            halves = []
            for _ in range(SHORT_RUNS):
                halves.append(load.at_rate(port, requests, 64, rate / 2, SHORT_SECONDS))
                reports[port].append(halves[-1])
                after_each()
            assert not any(half.failures for half in halves)
            p50, p99 = ([half.milliseconds(quantile) for half in halves] for quantile in (0.5, 0.99))
            return {
                "half_load_rate": float(np.median([half.rate for half in halves])),
                "half_load_p50_ms": float(np.median(p50)),
                "half_load_p99_ms": float(np.median(p99)),
                "half_load_p99_ms_min": min(p99),
                "half_load_p99_ms_max": max(p99),
                "half_load_p99_ms_with_waits": float(
                    np.median([half.milliseconds_with_waits(0.99) for half in halves])
                ),
            }

        result |= half_load(embedded, result["ours"])

        before = _megabytes(process)
        many = load.as_fast_as_answered(embedded, requests, CONNECTIONS, count=100_000)
        assert not many.failures
        result["growth_mb_over_100k_requests"] = _megabytes(process) - before
        _stop(process)
        answered = _answered([*reports.pop(embedded), many])
        result |= {f"embedded_{k}": v for k, v in _account(answered, _logged(folder / "events")).items()}

        killed = []
        for number in range(KILLS):
            port, events = free_port(), folder / f"killed-{number}"
            with _process(*server, events, "--port", port) as process:
                _wait_for(port, process)
                killed.append(_lost_milliseconds(process, port, requests, events))
        result |= {"sigkill_lost_ms": float(np.median(killed)), "sigkill_lost_ms_max": max(killed)}

        publishing = running.enter_context(
            _process(
                *(*server, folder / "spool", "--port", published, "--topic", ours.name, "--drain-seconds", 300),
                environment=emulator,
            )
        )
        _wait_for(published, publishing)
        pulled: list[bytes] = []

        def pull() -> None:
            # As a subscriber would: what it does not take, the emulator keeps in its memory and has to go through.
            pulled.extend(ours.pull(len(_answered(reports[published])) - len(pulled)))

        rates = []
        for _ in range(RUNS):
            begin = time.perf_counter()
            throughput(published, SECONDS)
            # What waits on the disk is not delivered yet: the time it takes counts.
            _wait_until_published(published)
            rates.append(len(reports[published][-1].latencies) / (time.perf_counter() - begin))
            pull()
        result["ours_publishing"] = float(np.median(rates))
        result |= {f"publishing_{k}": v for k, v in half_load(published, result["ours_publishing"], pull).items()}
        answered = _answered(reports[published])
        _stop(publishing)
        pull()
        delivered = [event_decoder.decode(message).decision_id.encode() for message in pulled]
        result |= {f"publishing_{k}": v for k, v in _account(answered, delivered).items()}
    return result


@contextlib.contextmanager
def _pubsub_emulator(folder: Path) -> Iterator[str]:
    """Runs the Pub/Sub emulator at idle priority; yields its `host:port`.

    Unlike `servers.pubsub_emulator` it shares this process's session: a kernel that groups processes by session
    (autogroup) gives each session the same share of the processor, whatever the priorities inside it.
    """
    port = free_port()
    command = ["chrt", "--idle", "0", str(pubsub_program()), "--host=127.0.0.1", f"--port={port}"]
    with (
        (folder / "pubsub.log").open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        try:
            _wait_for(port, process)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


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
        catalogue=[Item(action=i, item_id=str(i), attributes={"title": f"Movie {i}"}) for i in range(NUM_ACTIONS)],
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

    with redirect(pubsub=address):
        publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
    with publisher, subscriber:
        yield _Topic(publisher, subscriber, name)


def _answered(reports: list[load.Report]) -> list[bytes]:
    return [decision_id for report in reports for decision_id in report.decision_ids]


def _account(answered: list[bytes], logged: list[bytes]) -> dict[str, int]:
    return {
        "decisions_answered": len(answered),
        "decisions_lost": len(set(answered) - set(logged)),
        "decisions_twice": len(logged) - len(set(logged)),
    }


def _lost_milliseconds(process: "subprocess.Popen[bytes]", port: int, requests: list[bytes], events: Path) -> float:
    """How long before SIGKILL, under full load, the oldest decision was made that was answered and is not in the log."""
    killed_at: list[float] = []

    def kill() -> None:
        killed_at.append(time.time() * 1e3)
        process.kill()

    timer = threading.Timer(KILL_AFTER_SECONDS, kill)
    timer.start()
    answered = load.as_fast_as_answered(port, requests, CONNECTIONS, 10 * KILL_AFTER_SECONDS).decision_ids
    timer.join()
    process.wait()
    event_segments.seal_abandoned(events)
    lost = set(answered) - set(_logged(events))
    # A decision's id begins with the millisecond it was made in.
    return max((killed_at[0] - int(one[:8] + one[9:13], 16) for one in lost), default=0.0)


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
        for line in segment.read_bytes().splitlines(keepends=True)
        if line.endswith(b"\n")  # or SIGKILL came in the middle of it
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
            if error.code == 404:  # the reference and the emulator have no such route, but are there
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"no server on port {port}")


def _wait_until_published(port: int) -> None:
    """Until all that was decided is delivered."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            health = json.load(answer)
        if health["published"]["published"] >= health["events"]["logged"]:
            return
        time.sleep(0.25)
    raise RuntimeError("the publisher does not catch up")


def _megabytes(process: "subprocess.Popen[bytes]") -> float:
    return float(psutil.Process(process.pid).memory_info().rss) / 1e6

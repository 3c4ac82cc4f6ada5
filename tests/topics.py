"""Pub/Sub topics on Google's emulator, and the emulator on a port of one's choice."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
from google.pubsub_v1 import types
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from orchestration.emulators.servers import pubsub_program
from orchestration.processes import Child

PROJECT = "test-project"


@contextlib.contextmanager
def pubsub_on(port: int, logs: Path) -> Iterator[str]:
    """The emulator where one was before, empty; gives its host:port once it answers."""
    address = f"127.0.0.1:{port}"
    command = [str(pubsub_program()), "--host=127.0.0.1", f"--port={port}"]
    with Child("Pub/Sub emulator", command, logs / "pubsub.log"), grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(timeout=60)
        yield address


class Topic:
    """A topic with one subscription, to see what arrives."""

    def __init__(self, address: str, name: str) -> None:
        self._channel = grpc.insecure_channel(address)
        # The calls under the clients: those warn of `return_immediately`, without which a pull waits for a minute.
        self._subscriber = SubscriberGrpcTransport(channel=self._channel)
        self.name = f"projects/{PROJECT}/topics/{name}"
        self._subscription = f"projects/{PROJECT}/subscriptions/{name}"
        PublisherGrpcTransport(channel=self._channel).create_topic(types.Topic(name=self.name))
        self._subscriber.create_subscription(
            types.Subscription(name=self._subscription, topic=self.name, ack_deadline_seconds=60)
        )

    def pull(self, at_least: int, seconds: float = 30.0) -> list[bytes]:
        """All messages that are there once `at_least` are, or the time is over."""
        messages: list[bytes] = []
        deadline = time.monotonic() + seconds
        pull = types.PullRequest(subscription=self._subscription, max_messages=1000, return_immediately=True)
        while True:
            received = self._subscriber.pull(pull).received_messages
            if received:
                messages += [message.message.data for message in received]
                self._subscriber.acknowledge(
                    types.AcknowledgeRequest(
                        subscription=self._subscription, ack_ids=[message.ack_id for message in received]
                    )
                )
            elif len(messages) >= at_least or time.monotonic() > deadline:
                return messages
            else:
                time.sleep(0.05)

    def close(self) -> None:
        self._channel.close()

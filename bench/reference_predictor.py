"""The servers that bench.predictor compares ours with.

    python -m bench.reference_predictor save FOLDER                 save an untrained LinUCB policy of TF-Agents
    python -m bench.reference_predictor serve FOLDER PORT TOPIC     serve it as the tutorials do
    python -m bench.reference_predictor empty PORT                  our server, with a handler that does nothing

As in the tutorials, `serve` calls the SavedModel's `action` for each instance, with Python lists. Each request creates
a Pub/Sub client, publishes, and waits for the result.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contracts.command_line import FlagParser, run_main

NUM_ACTIONS, OBSERVATION_DIM = 100, 20


def save(folder: Path) -> None:
    """A LinUCB policy of TF-Agents, saved by its PolicySaver."""
    import trainer  # noqa: F401  Sets TF_USE_LEGACY_KERAS, before TensorFlow is imported.

    import tensorflow as tf  # isort: skip
    from tf_agents.bandits.agents import lin_ucb_agent
    from tf_agents.policies import policy_saver
    from tf_agents.specs import tensor_spec
    from tf_agents.trajectories import time_step

    agent = lin_ucb_agent.LinearUCBAgent(
        time_step_spec=time_step.time_step_spec(tf.TensorSpec([OBSERVATION_DIM], tf.float32)),
        action_spec=tensor_spec.BoundedTensorSpec([], tf.int32, 0, NUM_ACTIONS - 1),
        alpha=0.5,
        tikhonov_weight=0.1,
    )
    policy_saver.PolicySaver(agent.policy).save(str(folder))


def serve(folder: Path, port: int, topic: str) -> None:
    """Serves it until killed."""
    import trainer  # noqa: F401  Sets TF_USE_LEGACY_KERAS, before TensorFlow is imported.

    import tensorflow as tf  # isort: skip
    import uvicorn
    from fastapi import FastAPI, Request
    from google.cloud import pubsub_v1
    from tf_agents.trajectories import time_step

    app = FastAPI()
    policy = tf.saved_model.load(str(folder))

    @app.post("/predict")
    async def predict(request: Request) -> Any:
        instances = (await request.json())["instances"]
        predictions = []
        for instance in instances:
            step = policy.action(
                time_step.TimeStep(
                    tf.constant([0]), tf.constant([0.0]), tf.constant([1.0]), tf.constant([instance["observation"]])
                ),
                (),
            )
            predictions.append({"action": int(step.action.numpy().tolist()[0])})
        publisher = pubsub_v1.PublisherClient()
        message = json.dumps({"instances": instances, "predictions": predictions}).encode()
        publisher.publish(topic, message).result()
        return {"predictions": predictions}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def empty(port: int) -> None:
    """The same server as ours, Guard and all, with a handler that takes the body and answers as many bytes as ours."""
    from fastapi import FastAPI, Request, Response

    from predictor import connections
    from predictor.app import http_server, listen
    from predictor.guard import Guard, Rules
    from predictor.metrics import Metrics

    app = FastAPI()
    answer = b"x" * 1300

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        await request.body()
        return Response(answer, 200, None, "application/json")

    metrics = Metrics()
    guarded = Guard(app, metrics, Rules(frozenset({"/predict"}), 128))
    http_server(guarded, metrics, connections.limit(10.0, 2048)).run(sockets=[listen("127.0.0.1", port)])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one of the commands; returns the exit code."""
    return run_main("bench.reference_predictor", _run, argv)


def _run(argv: Sequence[str] | None) -> None:
    parser = FlagParser(prog="python -m bench.reference_predictor", documentation=__doc__)
    commands = parser.add_subparsers(required=True, dest="command", metavar="command")
    folder = {"type": Path, "help": "of the SavedModel"}
    port = {"type": int, "help": "to listen on"}
    for name, text, wanted in (
        ("save", "save a LinUCB policy of TF-Agents", {"folder": folder}),
        ("serve", "serve it in the reference way", {"folder": folder, "port": port, "topic": {"help": "of Pub/Sub"}}),
        ("empty", "serve a handler that does nothing", {"port": port}),
    ):
        command = commands.add_parser(name, help=text, description=text)
        for argument, settings in wanted.items():
            command.add_argument(argument, **settings)
    given = vars(parser.parse_args(argv))
    {"save": save, "serve": serve, "empty": empty}[given.pop("command")](**given)


if __name__ == "__main__":
    sys.exit(main())

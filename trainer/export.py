"""Writes the policy artifact, and reads back what training continues from. See contracts.policies for its parts."""

import errno
import logging
import shutil
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from contracts.errors import InputError
from contracts.policies import (
    CARD_NAME,
    CHECKPOINT_NAME,
    LINEAR_NAME,
    NETWORK_NAME,
    SAVED_MODEL_NAME,
    Exploration,
    PolicyCard,
    decode_card,
    encode_json,
)
from trainer.linear import Posterior, SufficientStatistics

STATISTICS_NAME = "statistics.npz"
# What Cloud Storage FUSE, which Vertex AI mounts buckets with, says to renaming a folder that is not empty.
NO_RENAMED_FOLDERS = {errno.EMFILE, errno.ENOTSUP, errno.ENOSYS}


def read_card(policies: Path, version: str) -> PolicyCard | None:
    """The card of a policy in the store, None when it is not there. Raises InputError for one that cannot be read."""
    path = policies / version / CARD_NAME
    return decode_card(path.read_bytes(), str(path)) if path.is_file() else None


def write(policies: Path, card: PolicyCard, write_parts: Callable[[Path], None]) -> None:
    """Adds a policy to the store: all of it or nothing.

    `write_parts` fills a folder beside the store's policies (its name starts with a dot, so that nobody takes it for
    one); the card comes last, then the folder gets its name. A policy of that version that is there already is kept.
    Where folders cannot be renamed (a mounted bucket) its files are copied, the card last: without one, it is no policy.
    What trainings of this version left that were killed is removed.

    Raises:
      InputError: the store cannot be written to, or the version's place is taken by something that is not a policy.
    """
    # Named anew each time: in a container that is started again, the process has the same number.
    temporary = policies / f".{card.version}.{uuid.uuid4().hex}"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"policies: cannot write to {policies}: {error.strerror}") from None
    try:
        write_parts(temporary)
        (temporary / CARD_NAME).write_bytes(encode_json(card))
        _publish(temporary, policies / card.version)
    except Exception:
        # Gone: another training of the same inputs was done first, and took it for a leftover.
        if temporary.is_dir() or read_card(policies, card.version) is None:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    for leftover in policies.glob(f".{card.version}.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _publish(temporary: Path, target: Path) -> None:
    """Gives the folder its name; leaves what is there already."""
    try:
        temporary.rename(target)
    except OSError as error:
        if (target / CARD_NAME).is_file():
            return  # another training of the same inputs was there first, and made the same policy
        if error.errno in NO_RENAMED_FOLDERS:
            copy(temporary, target)
        elif target.is_dir():
            raise InputError(f"{target}: is in the way and has no {CARD_NAME}; remove it") from None
        else:
            raise


def copy(policy: Path, folder: Path) -> None:
    """Copies a policy's parts into `folder`, the card last; a second copy leaves the same."""
    parts = [path.name for path in policy.iterdir() if path.name != CARD_NAME]
    folder.mkdir(parents=True, exist_ok=True)
    for name in parts:
        source = policy / name
        if source.is_dir():
            shutil.copytree(source, folder / name, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, folder / name)
    shutil.copyfile(policy / CARD_NAME, folder / CARD_NAME)


class Model(NamedTuple):
    """What a policy has learned, in the form that it serves in, float32.

    An observation goes through the layers (of which a linear policy has none): x -> relu(x weights + bias). With e what
    comes out, [E], action k is expected to bring theta_k . e + bias_k, give or take sqrt(e^T covariance_k e).
    """

    layers: list[tuple[np.ndarray, np.ndarray]]  # ([in, out], [out])
    theta: np.ndarray  # [K, E]
    bias: np.ndarray  # [K]
    covariance: np.ndarray | None  # [K, E, E]; None where the policy does not say how sure it is
    num_samples: np.ndarray  # [K]

    @classmethod
    def linear(cls, posterior: Posterior, num_samples: np.ndarray) -> "Model":
        """A linear policy's."""
        with np.errstate(over="ignore"):  # what does not fit is infinite, and `write_model` refuses it
            theta, covariance = posterior.theta.astype(np.float32), posterior.covariance.astype(np.float32)
        return cls([], theta, np.zeros(len(theta), np.float32), covariance, num_samples)

    def scores(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[B, D] -> mean and standard deviation, [B, K] each."""
        encoded = observations.astype(np.float32)
        for weights, bias in self.layers:
            encoded = np.maximum(encoded @ weights + bias, 0)
        mean = encoded @ self.theta.T + self.bias
        if self.covariance is None:
            return mean, np.zeros_like(mean)
        # e^T C e is the product of C and e e^T, both as vectors: one matrix product for all actions.
        outer = (encoded[:, :, np.newaxis] * encoded[:, np.newaxis, :]).reshape(len(encoded), -1)
        variance = outer @ self.covariance.reshape(len(self.theta), -1).T
        return mean, np.sqrt(np.maximum(variance, 0))


def write_model(folder: Path, model: Model, algorithm: str, exploration: Exploration, observation_dim: int) -> None:
    """The numpy form and the SavedModel.

    Raises:
      InputError: what was learned does not fit into float32: rewards or observations are too large, or a ridge too small.
    """
    arrays: dict[str, Any] = {"theta": model.theta, "num_samples": model.num_samples}
    if model.covariance is not None:
        arrays["covariance"] = model.covariance
    if model.layers:
        arrays["bias"] = model.bias
    for index, (weights, bias) in enumerate(model.layers):
        arrays |= {f"weights_{index}": weights, f"bias_{index}": bias}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(
                f"trained policy: {name} must be finite: rewards or observations are too large, or a ridge too small"
            )
    np.savez(folder / (NETWORK_NAME if model.layers else LINEAR_NAME), **arrays)
    save_model(folder / SAVED_MODEL_NAME, model, algorithm, exploration, observation_dim)


def read_model(policy: Path) -> Model:
    """What `write_model` wrote in numpy form. Raises InputError when it cannot be read."""
    path = policy / LINEAR_NAME
    path = path if path.is_file() else policy / NETWORK_NAME
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            count = sum(name.startswith("weights_") for name in arrays)
            return Model(
                [(arrays[f"weights_{index}"], arrays[f"bias_{index}"]) for index in range(count)],
                arrays["theta"],
                arrays.get("bias", np.zeros(len(arrays["theta"]), np.float32)),
                arrays.get("covariance"),
                arrays["num_samples"],
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a policy in numpy form: {error}") from None


def write_statistics(checkpoint: Path, statistics: SufficientStatistics) -> None:
    """The checkpoint of a linear policy."""
    checkpoint.mkdir(exist_ok=True)
    np.savez(checkpoint / STATISTICS_NAME, a=statistics.a, b=statistics.b, n=statistics.n)


def read_statistics(policy: Path) -> SufficientStatistics:
    """The statistics that a linear policy was trained from. Raises InputError when its checkpoint cannot be read."""
    return read_statistics_file(policy / CHECKPOINT_NAME / STATISTICS_NAME)


def read_statistics_file(path: Path) -> SufficientStatistics:
    """The statistics in a file. Raises InputError when it cannot be read."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return SufficientStatistics(arrays["a"], arrays["b"], arrays["n"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a checkpoint of a linear policy: {error}") from None


def save_model(folder: Path, model: Model, algorithm: str, exploration: Exploration, observation_dim: int) -> None:
    """A SavedModel that acts as TF-Agents' policy does, with the functions and signatures of PolicySaver's.

    `action(time_step, policy_state=())` -> PolicyStep with `action` [B] int32, and `scores(observation)` -> `mean` and
    `std` [B, K]. One fused graph whatever the number of actions: PolicySaver's grows with them, takes seconds at a
    hundred and cannot be made at thousands.
    """
    import tensorflow as tf
    from tf_agents.trajectories import PolicyStep, TimeStep

    num_actions, encoding_dim = model.theta.shape
    policy = tf.Module()
    policy.layers = [(tf.Variable(weights), tf.Variable(bias)) for weights, bias in model.layers]
    policy.theta = tf.Variable(model.theta, name="theta")
    policy.bias = tf.Variable(model.bias, name="bias")
    if model.covariance is not None:
        policy.covariance = tf.Variable(model.covariance.reshape(num_actions, -1), name="covariance")

    def score(observation: Any) -> tuple[Any, Any]:
        encoded = observation
        for weights, bias in policy.layers:
            encoded = tf.nn.relu(tf.matmul(encoded, weights) + bias)
        mean = tf.matmul(encoded, policy.theta, transpose_b=True) + policy.bias
        if model.covariance is None:
            return mean, tf.zeros_like(mean)
        outer = tf.reshape(encoded[:, :, tf.newaxis] * encoded[:, tf.newaxis, :], [-1, encoding_dim**2])
        return mean, tf.sqrt(tf.maximum(tf.matmul(outer, policy.covariance, transpose_b=True), 0.0))

    def choose(observation: Any) -> Any:
        mean, std = score(observation)
        match algorithm:
            case "lin_ucb" | "neural_linucb":
                preference = mean + exploration.alpha * std
            case "lin_ts":
                preference = mean + exploration.alpha * std * tf.random.normal(tf.shape(mean))
            case "neural_boltzmann":
                return tf.random.categorical(mean / exploration.temperature, 1, tf.int32)[:, 0]
            case _:
                preference = mean
        best = tf.argmax(preference, axis=-1, output_type=tf.int32)
        if algorithm == "neural_epsilon_greedy":
            explores = tf.random.uniform(tf.shape(best)) < exploration.epsilon
            anything = tf.random.uniform(tf.shape(best), maxval=num_actions, dtype=tf.int32)
            return tf.where(explores, anything, best)
        return best

    # PolicySaver's input names, with a slash; TensorFlow would say at each save that it replaces that.
    logging.getLogger("absl").addFilter(_is_not_about_slashes)
    observation_spec = tf.TensorSpec([None, observation_dim], tf.float32, name="0/observation")
    time_step_spec = TimeStep(
        step_type=tf.TensorSpec([None], tf.int32, name="0/step_type"),
        reward=tf.TensorSpec([None], tf.float32, name="0/reward"),
        discount=tf.TensorSpec([None], tf.float32, name="0/discount"),
        observation=observation_spec,
    )

    @tf.function(autograph=False)
    def action(time_step: Any, policy_state: Any = ()) -> Any:
        return PolicyStep(action=choose(time_step.observation), state=policy_state, info=())

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32, name="batch_size")], autograph=False)
    def get_initial_state(batch_size: Any) -> Any:
        return ()

    @tf.function(input_signature=list(time_step_spec), autograph=False)
    def flat_action(step_type: Any, reward: Any, discount: Any, observation: Any) -> Any:
        return {"action": choose(observation)}

    @tf.function(
        input_signature=[tf.TensorSpec([None, observation_dim], tf.float32, name="observation")], autograph=False
    )
    def scores(observation: Any) -> Any:
        mean, std = score(observation)
        return {"mean": mean, "std": std}

    action.get_concrete_function(time_step_spec)
    policy.action = action
    policy.get_initial_state = get_initial_state
    policy.scores = scores
    signatures = {"action": flat_action, "get_initial_state": get_initial_state, "scores": scores}
    tf.saved_model.save(policy, str(folder), signatures=signatures)


def _is_not_about_slashes(record: logging.LogRecord) -> bool:
    return "is not a valid tf.function parameter name" not in record.getMessage()

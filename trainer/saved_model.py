"""The policy as a TensorFlow SavedModel, with the functions and signatures that TF-Agents' PolicySaver gives one."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contracts.policies import PolicyCard
from contracts.policy_arrays import PolicyArrays
from trainer import agents


def save(folder: Path, arrays: PolicyArrays, card: PolicyCard) -> None:
    """Saves a policy that acts as the TF-Agents policy of the card's algorithm does.

    `action(time_step, policy_state=())` -> PolicyStep with `action` [B] int32, and `scores(observation)` -> `mean` and
    `std`, [B, K] float32 each. It is one fused graph for any number of actions. PolicySaver's graph grows with them: it
    takes seconds at a hundred actions and can't be traced at thousands.

    Raises tf.errors.OpError where TensorFlow cannot write the files, and ValueError for an unknown algorithm.
    """
    import tensorflow as tf
    from tf_agents.trajectories import PolicyStep, TimeStep

    policy, score = _scoring(arrays)
    choose = _choosing(score, card)
    # The input names are PolicySaver's, with a slash. TensorFlow would warn at each save that it replaces the slash.
    logging.getLogger("absl").addFilter(_is_not_about_slashes)
    batch = tf.TensorSpec([None, card.observation_dim], tf.float32, name="observation")
    time_step_spec = TimeStep(
        step_type=tf.TensorSpec([None], tf.int32, name="0/step_type"),
        reward=tf.TensorSpec([None], tf.float32, name="0/reward"),
        discount=tf.TensorSpec([None], tf.float32, name="0/discount"),
        observation=tf.TensorSpec(batch.shape, batch.dtype, name="0/observation"),
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

    @tf.function(input_signature=[batch], autograph=False)
    def scores(observation: Any) -> Any:
        mean, std = score(observation)
        return {"mean": mean, "std": std}

    action.get_concrete_function(time_step_spec)
    policy.action = action
    policy.get_initial_state = get_initial_state
    policy.scores = scores
    signatures = {"action": flat_action, "get_initial_state": get_initial_state, "scores": scores}
    tf.saved_model.save(policy, str(folder), signatures=signatures)


def _scoring(arrays: PolicyArrays) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
    """A tf.Module that holds the arrays, and the function of it from observation [B, D] to mean and std [B, K]."""
    import tensorflow as tf

    num_actions, encoding_dim = arrays.theta.shape
    module = tf.Module()
    module.layers = [(tf.Variable(weights), tf.Variable(bias)) for weights, bias in arrays.layers]
    module.theta = tf.Variable(arrays.theta, name="theta")
    module.bias = tf.Variable(arrays.bias, name="bias")
    if arrays.covariance is not None:
        module.covariance = tf.Variable(arrays.covariance.reshape(num_actions, -1), name="covariance")

    def score(observation: Any) -> tuple[Any, Any]:
        encoded = observation
        for weights, bias in module.layers:
            encoded = tf.nn.relu(tf.matmul(encoded, weights) + bias)
        mean = tf.matmul(encoded, module.theta, transpose_b=True) + module.bias
        if arrays.covariance is None:
            return mean, tf.zeros_like(mean)
        outer = tf.reshape(encoded[:, :, tf.newaxis] * encoded[:, tf.newaxis, :], [-1, encoding_dim**2])
        return mean, tf.sqrt(tf.maximum(tf.matmul(outer, module.covariance, transpose_b=True), 0.0))

    return module, score


def _choosing(score: Callable[[Any], tuple[Any, Any]], card: PolicyCard) -> Callable[[Any], Any]:
    """The function from observation [B, D] to action [B] int32 that the card's algorithm stands for."""
    import tensorflow as tf

    exploration = card.exploration

    def best(preference: Any) -> Any:
        return tf.argmax(preference, axis=-1, output_type=tf.int32)

    def choose(observation: Any) -> Any:
        mean, std = score(observation)
        match agents.CHOICE.get(card.algorithm):
            case "greedy":
                return best(mean)
            case "ucb":
                return best(mean + exploration.alpha * std)
            case "thompson":
                return best(mean + exploration.alpha * std * tf.random.normal(tf.shape(mean)))
            case "softmax":
                return tf.random.categorical(mean / exploration.temperature, 1, tf.int32)[:, 0]
            case "epsilon_greedy":
                greedy = best(mean)
                explores = tf.random.uniform(tf.shape(greedy)) < exploration.epsilon
                anything = tf.random.uniform(tf.shape(greedy), maxval=card.num_actions, dtype=tf.int32)
                return tf.where(explores, anything, greedy)
            case _:
                raise ValueError(f"no TF-Agents policy of the algorithm {card.algorithm!r} is known")

    return choose


def _is_not_about_slashes(record: logging.LogRecord) -> bool:
    return "is not a valid tf.function parameter name" not in record.getMessage()

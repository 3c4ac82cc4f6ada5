"""TF-Agents' neural agents over networks that the project's artifact can hold.

A network sees standardised observations: less the mean of the first training, in its standard deviations. What it
predicts without arm features is the sum of a multilayer perceptron and a linear function of the observation (a skip
connection), so that it learns linear tastes as fast as a linear model does.

With arm features the network has two towers, one for the observation and one for the movie, and predicts the product of
their outputs: theta_k = tower(f_k). So a movie without interactions has a prediction too, and the size of the network
does not depend on the number of movies.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from contracts.policies import Exploration
from contracts.policy_arrays import PolicyArrays
from trainer import agents

# A feature that varies less than this is taken to be constant.
_SMALLEST_DEVIATION = 1e-6


class Network(NamedTuple):
    """A TF-Agents agent, and its variables that are trained and saved."""

    agent: Any
    moments: list[Any]  # tf.Variables, [D] each: the mean and the deviation that observations are standardised by
    layers: list[Any]  # tf.Variables: kernel, bias, kernel, bias, …
    # The kernel of the reward layer, then its bias and the kernel of the skip connection where it has them; or the
    # layers of the arm tower.
    output: list[Any]
    optimizer: Any
    arm_features: np.ndarray | None  # [K, F] float32, where there is an arm tower
    # One compiled training step on a batch: observation [B, D], action [B], reward [B]. Traced once for all fits.
    step: Callable[[Any, Any, Any], Any]

    def standardise(self, observations: Iterable[np.ndarray]) -> None:
        """Sets the moments to those of the observations, given in parts of [B, D]; once, before the first step."""
        count, total, squares = 0, 0.0, 0.0
        for part in observations:
            values = part.astype(np.float64)
            count += len(values)
            total = total + values.sum(axis=0)
            squares = squares + (values**2).sum(axis=0)
        if not count:
            return
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
        self.moments[0].assign(mean)
        self.moments[1].assign(np.where(deviation > _SMALLEST_DEVIATION, deviation, 1.0))

    def arrays(self, num_samples: np.ndarray) -> PolicyArrays:
        """The network as it serves; num_samples [K].

        The standardisation becomes part of the first layer. The skip connection is carried through the layers in 2 D
        units of each, the positive and the negative part of the observation, which a relu leaves as they are.
        """
        layers = _in_pairs(self.layers)
        output = [variable.numpy() for variable in self.output]
        if self.arm_features is None:
            theta = output[0].T
            bias = output[1] if len(output) > 1 else np.zeros(len(theta), np.float32)
            if len(output) > 2:
                layers = _beside_the_observation(layers)
                theta = np.concatenate([theta, output[2].T, -output[2].T], axis=1)
        else:
            *hidden, (weights, shift) = _in_pairs(self.output)
            theta = self.arm_features
            for layer in hidden:
                theta = np.maximum(theta @ layer[0] + layer[1], 0)
            theta = theta @ weights + shift
            bias = np.zeros(len(theta), np.float32)
        mean, deviation = (variable.numpy() for variable in self.moments)
        weights = layers[0][0] / deviation[:, np.newaxis]
        layers[0] = (weights, layers[0][1] - mean @ weights)
        return PolicyArrays(layers, theta, bias, None, num_samples)

    def checkpoint(self) -> Any:
        """Network and optimizer."""
        import tensorflow as tf

        return tf.train.Checkpoint(
            moments=self.moments, layers=self.layers, output=self.output, optimizer=self.optimizer
        )

    def variables(self) -> list[Any]:
        """Those of the checkpoint."""
        return [*self.moments, *self.layers, *self.output, *self.optimizer.variables]


def _in_pairs(variables: list[Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernel and bias of each layer."""
    values = [variable.numpy() for variable in variables]
    return list(zip(values[::2], values[1::2], strict=True))


def _beside_the_observation(layers: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Layers that compute the same, and pass on the positive and the negative part of the observation."""
    identity = np.eye(len(layers[0][0]), dtype=np.float32)
    passing, width = np.zeros(2 * len(identity), np.float32), 0
    extended = []
    for number, (weights, bias) in enumerate(layers):
        if number == 0:
            kernel = np.concatenate([weights, identity, -identity], axis=1)
        else:
            kernel = np.zeros((width + len(passing), len(bias) + len(passing)), np.float32)
            kernel[:width, : len(bias)] = weights
            kernel[width:, len(bias) :] = np.eye(len(passing))
        extended.append((kernel, np.concatenate([bias, passing])))
        width = len(bias)
    return extended


def build(
    algorithm: str,
    observation_dim: int,
    num_actions: int,
    hyperparameters: agents.Hyperparameters,
    exploration: Exploration,
    arm_features: np.ndarray | None = None,
) -> Network:
    """TF-Agents' agent of `algorithm`, untrained; over arm features [K, F] float32 where they are given.

    Raises ValueError for an algorithm that is not neural.
    """
    import tensorflow as tf
    from tf_agents.bandits.agents.neural_boltzmann_agent import NeuralBoltzmannAgent
    from tf_agents.bandits.agents.neural_epsilon_greedy_agent import NeuralEpsilonGreedyAgent
    from tf_agents.bandits.agents.neural_linucb_agent import NeuralLinUCBAgent
    from tf_agents.networks.encoding_network import EncodingNetwork

    time_step_spec, action_spec = agents.specs(observation_dim, num_actions)
    sizes = agents.layer_sizes(hyperparameters)
    optimizer = tf.keras.optimizers.Adam(float(hyperparameters["learning_rate"]))
    shape = {"time_step_spec": time_step_spec, "action_spec": action_spec, "optimizer": optimizer}
    match algorithm:
        case "neural_linucb":
            encoder = EncodingNetwork(time_step_spec.observation, fc_layer_params=sizes)
            agent = NeuralLinUCBAgent(
                encoding_network=encoder,
                encoding_network_num_train_steps=0,
                encoding_dim=sizes[-1],
                alpha=exploration.alpha,
                **shape,
            )
            layers, output = list(encoder.variables), [agent._reward_layer.kernel]
        case "neural_boltzmann":
            rewards, layers, output = _reward_network(shape, sizes, arm_features)
            agent = NeuralBoltzmannAgent(reward_network=rewards, temperature=exploration.temperature, **shape)
        case "neural_epsilon_greedy":
            rewards, layers, output = _reward_network(shape, sizes, arm_features)
            agent = NeuralEpsilonGreedyAgent(reward_network=rewards, epsilon=exploration.epsilon, **shape)
        case _:
            raise ValueError(f"no neural agent of the algorithm {algorithm!r} is known")
    optimizer.build([*layers, *output])
    moments = [tf.Variable(value, trainable=False) for value in (tf.zeros(observation_dim), tf.ones(observation_dim))]
    step = _train_step(agent, moments, arm_features)
    return Network(agent, moments, layers, output, optimizer, arm_features, step)


def _reward_network(
    shape: dict[str, Any], sizes: tuple[int, ...], arm_features: np.ndarray | None
) -> tuple[Any, list[Any], list[Any]]:
    """The network that predicts rewards, the variables of its layers, and those of its output.

    With arm features, it changes the agent's arguments `shape` so that the agent takes them.
    """
    from trainer.skip_network import SkipNetwork

    observation = shape["time_step_spec"].observation
    if arm_features is None:
        rewards = SkipNetwork(observation, int(shape["action_spec"].maximum) + 1, sizes)
        rewards.create_variables()
        return rewards, list(rewards.variables[:-3]), list(rewards.variables[-3:])
    rewards, shape["time_step_spec"] = _two_towers(observation.shape[0], arm_features.shape, sizes)
    shape["accepts_per_arm_features"] = True
    variables = list(rewards.variables)  # first those of the observation's tower: a kernel and a bias per layer
    return rewards, variables[: 2 * len(sizes)], variables[2 * len(sizes) :]


def _two_towers(observation_dim: int, arms_shape: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[Any, Any]:
    """TF-Agents' network over global and arm features, and the spec of its time steps.

    The arm tower ends without a relu, unlike in TF-Agents' own factory: with one, the product could not be negative.
    """
    import tensorflow as tf
    from tf_agents.bandits.networks.global_and_arm_feature_network import GlobalAndArmDotProductNetwork
    from tf_agents.bandits.specs.utils import create_per_arm_observation_spec
    from tf_agents.networks.encoding_network import EncodingNetwork
    from tf_agents.networks.sequential import Sequential
    from tf_agents.trajectories import time_step_spec

    num_actions, size = arms_shape
    observation_tower = EncodingNetwork(tf.TensorSpec([observation_dim], tf.float32), fc_layer_params=sizes)
    # One Dense per layer, which applies to a single arm as well as to all arms.
    arm_layers = [tf.keras.layers.Dense(width, activation="relu") for width in sizes[:-1]]
    arm_tower = Sequential(
        [*arm_layers, tf.keras.layers.Dense(sizes[-1])], input_spec=tf.TensorSpec([size], tf.float32)
    )
    spec = create_per_arm_observation_spec(observation_dim, size, num_actions)
    network = GlobalAndArmDotProductNetwork(
        {"global": spec["global"], "per_arm": tf.TensorSpec([size], tf.float32)}, observation_tower, arm_tower
    )
    network.create_variables()
    return network, time_step_spec(spec)


def _train_step(agent: Any, moments: list[Any], arm_features: np.ndarray | None) -> Callable[[Any, Any, Any], Any]:
    """One step of TF-Agents' training, compiled: `Network.step`."""
    import tensorflow as tf
    from tf_agents.trajectories import StepType, Trajectory

    features = None if arm_features is None else tf.constant(arm_features)

    @tf.function(reduce_retracing=True)
    def step(observation: Any, action: Any, reward: Any) -> Any:
        observation = (observation - moments[0]) / moments[1]
        if not hasattr(agent, "compute_loss_using_reward_layer"):
            shape = tf.stack([tf.size(action), 1])
            taken, info = observation[:, tf.newaxis], agent.policy.info_spec  # none
            if features is not None:
                taken = {"global": taken}
                info = info._replace(chosen_arm_features=tf.gather(features, action)[:, tf.newaxis])
            return agent.train(
                Trajectory(
                    step_type=tf.fill(shape, StepType.FIRST),
                    observation=taken,
                    action=action[:, tf.newaxis],
                    policy_info=info,
                    next_step_type=tf.fill(shape, StepType.LAST),
                    reward=reward[:, tf.newaxis],
                    discount=tf.zeros(shape),
                )
            ).loss
        return agent.compute_loss_using_reward_layer(observation, action, reward, training=True).loss

    compiled: Callable[[Any, Any, Any], Any] = step
    return compiled

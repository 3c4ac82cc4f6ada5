"""A network whose prediction is the sum of a perceptron's and a linear one's. Imports TF-Agents: import it late."""

from typing import Any

import tensorflow as tf
from tf_agents.networks.encoding_network import EncodingNetwork
from tf_agents.networks.network import Network


class SkipNetwork(Network):
    """Hidden layers and a linear output, plus a linear function of the observation that begins at 0.

    observation [B, D] -> rewards [B, K]. The variables are kernel and bias of each hidden layer, then of the output, then
    the kernel of the linear function.
    """

    def __init__(self, observation_spec: Any, num_actions: int, sizes: tuple[int, ...]) -> None:
        super().__init__(input_tensor_spec=observation_spec, state_spec=(), name="SkipNetwork")
        self._encoder = EncodingNetwork(observation_spec, fc_layer_params=sizes)
        near_zero = tf.random_uniform_initializer(-0.03, 0.03)  # as TF-Agents' QNetwork; draws by the global seed
        self._output = tf.keras.layers.Dense(num_actions, kernel_initializer=near_zero)
        self._linear = tf.keras.layers.Dense(num_actions, use_bias=False, kernel_initializer="zeros")

    def call(
        self, observation: Any, step_type: Any = None, network_state: Any = (), training: bool = False
    ) -> tuple[Any, Any]:
        """As TF-Agents defines it."""
        encoded, _ = self._encoder(observation, step_type, training=training)
        return self._output(encoded) + self._linear(observation), network_state

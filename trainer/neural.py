"""Training TF-Agents' neural agents from windows.

The network learns the reward of the action taken, in large batches, by a compiled step, for several epochs. Unlike in
the linear policies, a second epoch does not count the evidence twice: it only improves the fit. Every tenth trajectory
is held out. Training ends when the loss on these has not fallen for `patience` epochs, and the best network is kept.

neural_linucb trains its network in its first training alone. From then on the network is the fixed encoder of a linear
policy that learns from sufficient statistics, each interaction once, as TF-Agents' agent does after its first steps.

With arm features the network has two towers, one for the observation and one for the movie, and predicts the product of
their outputs: theta_k = tower(f_k). So a movie without interactions has a prediction too, and the size of the network
does not depend on the number of movies.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from contracts.errors import InputError
from contracts.policies import CHECKPOINT_NAME, Exploration, PolicyCard
from contracts.policy_arrays import PolicyArrays, Scorer
from contracts.windows import Split
from trainer import agents, arms, checkpoint, dataset
from trainer.dataset import ReadyWindow
from trainer.linear import SufficientStatistics, disjoint

if TYPE_CHECKING:
    from contracts.trajectories import TrajectoryBatch

HELD_OUT = 10  # every tenth trajectory
NETWORK_CHECKPOINT = "network"


class Network(NamedTuple):
    """A TF-Agents agent, and its variables that are trained and saved."""

    agent: Any
    layers: list[Any]  # tf.Variables: kernel, bias, kernel, bias, …
    output: list[Any]  # the kernel of the reward layer, and its bias where it has one; or the layers of the arm tower
    optimizer: Any
    arm_features: np.ndarray | None  # [K, F] float32, where there is an arm tower
    # One compiled training step on a batch: observation [B, D], action [B], reward [B]. Traced once for all fits.
    step: Callable[[Any, Any, Any], Any]

    def arrays(self, num_samples: np.ndarray) -> PolicyArrays:
        """The network as it serves; num_samples [K]."""
        layers = [variable.numpy() for variable in self.layers]
        output = [variable.numpy() for variable in self.output]
        if self.arm_features is None:
            theta = output[0].T
            bias = output[1] if len(output) > 1 else np.zeros(len(theta), np.float32)
        else:
            *hidden, (weights, shift) = zip(output[::2], output[1::2], strict=True)
            theta = self.arm_features
            for layer in hidden:
                theta = np.maximum(theta @ layer[0] + layer[1], 0)
            theta = theta @ weights + shift
            bias = np.zeros(len(theta), np.float32)
        return PolicyArrays(list(zip(layers[::2], layers[1::2], strict=True)), theta, bias, None, num_samples)

    def checkpoint(self) -> Any:
        """Network and optimizer."""
        import tensorflow as tf

        return tf.train.Checkpoint(layers=self.layers, output=self.output, optimizer=self.optimizer)

    def variables(self) -> list[Any]:
        """Those of the checkpoint."""
        return [*self.layers, *self.output, *self.optimizer.variables]


def learn(
    policies: Path, card: PolicyCard, parent: PolicyCard | None, new: list[tuple[ReadyWindow, Split]]
) -> tuple[PolicyArrays, Callable[[Path], None]]:
    """Trains on the new splits, continuing from the parent.

    Returns the policy's arrays, and the function that writes its checkpoint into the policy's folder.
    """
    import tensorflow as tf

    # The version is a digest of all inputs, so the same inputs draw the same first weights.
    tf.random.set_seed(int(card.version[-8:], 16))
    network = _untrained(card)
    linear = card.algorithm == "neural_linucb"
    statistics = SufficientStatistics.zeros(card.num_actions, agents.layer_sizes(card.hyperparameters)[-1])
    if parent is not None:
        before = policies / parent.version
        _continue(network, parent, before, card)
        statistics = checkpoint.read(before).grown(card.num_actions)

    def batches() -> "Iterator[TrajectoryBatch]":
        for window, split in new:
            yield from dataset.read(window, split, card.num_actions)

    # Without new records there is nothing to fit: only other settings or another catalogue have changed.
    if any(window.manifest.records(split) for window, split in new) and (parent is None or not linear):
        fit(network, batches, card.hyperparameters)
    arrays = network.arrays(statistics.n)
    scorer = Scorer(arrays)
    for batch in batches():
        rows = len(batch.action)
        encoded = scorer.encode(batch.observation) if linear else np.zeros((rows, statistics.observation_dim))
        statistics.add(encoded, batch.action, batch.reward)
    if linear:
        arrays = arrays.with_posterior(*disjoint(statistics, float(card.hyperparameters["tikhonov"])))

    def write_checkpoint(policy: Path) -> None:
        checkpoint.write(policy, statistics)
        network.checkpoint().write(str(policy / CHECKPOINT_NAME / NETWORK_CHECKPOINT))

    return arrays, write_checkpoint


def _untrained(card: PolicyCard) -> Network:
    """A new network by the card's settings, over the arm features of its catalogue if the settings ask for them."""
    features = None
    if card.hyperparameters.get("arm_features") == "shared":
        features = arms.arm_features(card.catalogue).astype(np.float32)
    return build(
        card.algorithm, card.observation_dim, card.num_actions, card.hyperparameters, card.exploration, features
    )


def _continue(network: Network, parent: PolicyCard, folder: Path, card: PolicyCard) -> None:
    """Gives the network the variables of its parent, whose policy is in `folder`.

    Added movies may have new genres. Then the arm tower has more inputs than the parent's, at the end. Their weights
    begin at 0, the value they would have if no movie had ever had these genres.

    Raises:
      InputError: the checkpoint is missing or of another network, or an arm feature has another meaning than before.
    """
    import tensorflow as tf

    before = network
    if network.arm_features is not None:
        _check_features(parent, card)
        if len(arms.genres(parent.catalogue)) < len(arms.genres(card.catalogue)):
            before = _untrained(parent)
    try:
        path = str(folder / CHECKPOINT_NAME / NETWORK_CHECKPOINT)
        before.checkpoint().read(path).assert_existing_objects_matched()
    except (tf.errors.OpError, AssertionError, ValueError) as error:
        raise InputError(f"{folder}: not a checkpoint of this network: {str(error).splitlines()[0]}") from None
    if before is not network:
        for new, old in zip(network.variables(), before.variables(), strict=True):
            value = np.zeros(new.shape, new.dtype.as_numpy_dtype)
            value[tuple(map(slice, old.shape))] = old.numpy()
            new.assign(value)


def _check_features(parent: PolicyCard, card: PolicyCard) -> None:
    """Raises InputError unless every arm feature of the parent has the same meaning now."""
    for name, old, new in (
        ("features per movie", len(parent.catalogue[0].features), len(card.catalogue[0].features)),
        ("genres", (known := arms.genres(parent.catalogue)), arms.genres(card.catalogue)[: len(known)]),
    ):
        if old != new:
            raise InputError(
                f"catalogue: {name} were {old} for parent {parent.version}, which learned from them; now {new}"
            )


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
    return Network(agent, layers, output, optimizer, arm_features, _train_step(agent, arm_features))


def _reward_network(
    shape: dict[str, Any], sizes: tuple[int, ...], arm_features: np.ndarray | None
) -> tuple[Any, list[Any], list[Any]]:
    """The network that predicts rewards, the variables of its layers, and those of its output.

    With arm features, it changes the agent's arguments `shape` so that the agent takes them.
    """
    from tf_agents.networks.q_network import QNetwork

    observation = shape["time_step_spec"].observation
    if arm_features is None:
        rewards = QNetwork(observation, shape["action_spec"], fc_layer_params=sizes)
        rewards.create_variables()
        return rewards, list(rewards.variables[:-2]), list(rewards.variables[-2:])
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


def fit(
    network: Network, batches: "Callable[[], Iterator[TrajectoryBatch]]", hyperparameters: agents.Hyperparameters
) -> list[float]:
    """Trains until the held-out loss stops falling, and leaves the network as it was at the lowest loss.

    Args:
      network: is changed in place.
      batches: returns an iterator over all trajectories at each call.
      hyperparameters: batch_size, epochs, patience.

    Returns:
      the held-out mean squared error before the first and after each epoch.
    """

    batch_size = int(hyperparameters["batch_size"])
    variables = [*network.layers, *network.output]

    def held_out_loss() -> float:
        scorer, squares, count = Scorer(network.arrays(np.zeros(0))), 0.0, 0
        for batch in batches():
            part = batch.take(slice(HELD_OUT - 1, None, HELD_OUT))
            mean = scorer.means(part.observation)
            squares += float(((mean[np.arange(len(part.action)), part.action] - part.reward) ** 2).sum())
            count += len(part.action)
        return squares / max(count, 1)

    losses = [held_out_loss()]
    best = [variable.numpy() for variable in variables]
    minibatches = _minibatches(batches, batch_size)
    for _ in range(int(hyperparameters["epochs"])):
        for observation, action, reward in minibatches:
            network.step(observation, action, reward)
        losses.append(held_out_loss())
        if losses[-1] <= min(losses):
            best = [variable.numpy() for variable in variables]
        elif len(losses) - 1 - int(np.argmin(losses)) >= int(hyperparameters["patience"]):
            break
    for variable, value in zip(variables, best, strict=True):
        variable.assign(value)
    return losses


def _train_step(agent: Any, arm_features: np.ndarray | None) -> Callable[[Any, Any, Any], Any]:
    """One step of TF-Agents' training, compiled: `Network.step`."""
    import tensorflow as tf
    from tf_agents.trajectories import StepType, Trajectory

    features = None if arm_features is None else tf.constant(arm_features)

    @tf.function(reduce_retracing=True)
    def step(observation: Any, action: Any, reward: Any) -> Any:
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


def _minibatches(batches: "Callable[[], Iterator[TrajectoryBatch]]", batch_size: int) -> Any:
    """The trajectories that are not held out, in batches of one size, prefetched.

    They are shuffled within each batch that is read. Iterate over it once per epoch: each pass has another order.
    """
    import tensorflow as tf

    epochs = itertools.count()

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        rng = np.random.default_rng(next(epochs))
        for batch in batches():
            rows = np.flatnonzero(np.arange(len(batch.action)) % HELD_OUT != HELD_OUT - 1)
            part = batch.take(rng.permutation(rows))
            yield part.observation, part.action, part.reward

    first = next(batches())
    signature = tuple(
        tf.TensorSpec([None, *array.shape[1:]], array.dtype)
        for array in (first.observation, first.action, first.reward)
    )
    return tf.data.Dataset.from_generator(chunks, output_signature=signature).rebatch(batch_size).prefetch(2)

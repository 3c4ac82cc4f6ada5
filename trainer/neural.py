"""Training TF-Agents' neural agents from windows.

The network learns the reward of the action taken, in large batches, by a compiled step, for several epochs. Unlike in
the linear policies, a second epoch does not count the evidence twice: it only improves the fit. Every tenth trajectory
is held out. Training ends when the loss on these has not fallen for `patience` epochs, and the best network is kept.

neural_linucb trains its network in its first training alone. From then on the network is the fixed encoder of a linear
policy that learns from sufficient statistics, each interaction once, as TF-Agents' agent does after its first steps.

Each training of the others replays earlier trajectories beside the new ones, or the network would forget what only
earlier windows show: the newest `replay` of those that the parent was trained on, as far as their windows are still
there. So the cost of a training does not grow with the history.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from contracts import items
from contracts.errors import InputError
from contracts.policies import CHECKPOINT_NAME, PolicyCard
from contracts.policy_arrays import PolicyArrays, Scorer
from contracts.windows import Split
from trainer import agents, arms, checkpoint, contexts, corrections
from trainer.contexts import Reader
from trainer.corrections import Correction
from trainer.dataset import ReadyWindow
from trainer.linear import SufficientStatistics, disjoint
from trainer.networks import Network, build

if TYPE_CHECKING:
    from contracts.trajectories import TrajectoryBatch

HELD_OUT = 10  # every tenth trajectory
NETWORK_CHECKPOINT = "network"


class Past(NamedTuple):
    """The parent, and the splits it was trained on that are still there, by start of their windows."""

    parent: PolicyCard
    splits: list[tuple[ReadyWindow, Split]]


def learn(
    policies: Path,
    card: PolicyCard,
    past: Past | None,
    new: list[tuple[ReadyWindow, Split]],
    fixes: list[Correction],
) -> tuple[PolicyArrays, Callable[[Path], None]]:
    """Trains on the new splits, on records that came late and on replayed splits, continuing from the parent.

    Returns the policy's arrays, and the function that writes its checkpoint into the policy's folder.
    """
    import tensorflow as tf

    # The version is a digest of all inputs, so the same inputs draw the same first weights.
    tf.random.set_seed(int(card.version[-8:], 16))
    network, reader = _untrained(card), Reader(policies, card)
    linear = card.algorithm == "neural_linucb"
    statistics = SufficientStatistics.zeros(card.num_actions, agents.layer_sizes(card.hyperparameters)[-1])
    if past is not None:
        before = policies / past.parent.version
        _continue(network, past.parent, before, card)
        renewed = items.renewed(card.catalogue, past.parent.catalogue)
        statistics = checkpoint.read(before).grown(card.num_actions).without(renewed)
    fresh: list[Callable[[], Iterator[TrajectoryBatch]]] = [
        _Part(window, split, reader) for window, split in new if window.manifest.records(split)
    ]
    late = (partial(_late, fix, reader) for fix in fixes)
    fresh += [part for part in late if next(part(), None) is not None]
    # Without new records there is nothing to fit: only other settings or another catalogue have changed.
    if fresh and (past is None or not linear):
        if past is None:
            network.standardise(batch.observation for part in fresh for batch in part())
        replay = int(card.hyperparameters.get("replay", 0))
        again: list[Callable[[], Iterator[TrajectoryBatch]]] = []
        again += _replayed(past.splits if past is not None else [], replay, reader)
        fit(network, again + fresh, card.hyperparameters)
    arrays = network.arrays(statistics.n)
    scorer = Scorer(arrays)
    for window, split, _, sign in [*((*part, part[0].start, 1.0) for part in new), *corrections.signed(fixes)]:
        for batch in reader.read(window, split):
            rows = len(batch.action)
            encoded = scorer.encode(batch.observation) if linear else np.zeros((rows, statistics.observation_dim))
            statistics.add(encoded, batch.action, batch.reward, sign)
    if linear:
        arrays = arrays.with_posterior(*disjoint(statistics, float(card.hyperparameters["tikhonov"])))

    def write_checkpoint(policy: Path) -> None:
        checkpoint.write(policy, statistics)
        network.checkpoint().write(str(policy / CHECKPOINT_NAME / NETWORK_CHECKPOINT))

    return arrays, write_checkpoint


@dataclass(frozen=True)
class _Part:
    """The trajectories of one split, or about the first `records` of them; call it to read them."""

    window: ReadyWindow
    split: Split
    reader: Reader
    records: int | None = None

    def __call__(self) -> "Iterator[TrajectoryBatch]":
        count = 0
        for batch in self.reader.read(self.window, self.split):
            yield batch
            count += len(batch.action)
            if self.records is not None and count >= self.records:
                break


def _late(fix: Correction, reader: Reader) -> "Iterator[TrajectoryBatch]":
    """What a correction adds that the policy can learn from."""
    for batch in corrections.added(fix, reader.card.num_actions):
        if len((own := reader.fit(batch, fix.after)).action):
            yield own


def _replayed(past: list[tuple[ReadyWindow, Split]], records: int, reader: Reader) -> list[_Part]:
    """The newest parts of the past with about `records` trajectories in all, oldest first."""
    parts = []
    for window, split in reversed(past):
        if records <= 0:
            break
        if count := window.manifest.records(split):
            parts.append(_Part(window, split, reader, records if count > records else None))
            records -= count
    return parts[::-1]


def _untrained(card: PolicyCard) -> Network:
    """A new network by the card's settings, over the arm features of its catalogue if the settings ask for them."""
    features = None
    if card.hyperparameters.get("arm_features") == "shared":
        features = arms.arm_features(card.catalogue, card.arm_columns).astype(np.float32)
    return build(
        card.algorithm, card.observation_dim, card.num_actions, card.hyperparameters, card.exploration, features
    )


def _continue(network: Network, parent: PolicyCard, folder: Path, card: PolicyCard) -> None:
    """Gives the network the variables of its parent, whose policy is in `folder`.

    Without arm features, added items get the mean coefficients of the others. With them, added items may have new
    attributes. Then the arm tower has more inputs than the parent's, at the end. Their weights
    begin at 0, the value they would have if no item had ever had these attributes.

    Raises:
      InputError: the checkpoint is missing or of another network, or an arm feature has another meaning than before.
    """
    import tensorflow as tf

    before = network
    has_tower = network.arm_features is not None
    if has_tower:
        _check_features(parent, card)
        if len(parent.arm_columns) < len(card.arm_columns):
            before = _untrained(parent)
    elif parent.num_actions < card.num_actions:
        before = _untrained(parent)
    old, new = contexts.of_card(parent), contexts.of_card(card)
    if old != new:
        before = _untrained(parent)
    try:
        path = str(folder / CHECKPOINT_NAME / NETWORK_CHECKPOINT)
        before.checkpoint().read(path).assert_existing_objects_matched()
    except (tf.errors.OpError, AssertionError, ValueError) as error:
        raise InputError(f"{folder}: not a checkpoint of this network: {str(error).splitlines()[0]}") from None
    if before is not network:
        _copy(before, network, None if old == new else contexts.places(old, new))
    if not has_tower:
        arms_renewed = items.renewed(card.catalogue, parent.catalogue)
        _begin_arms(network, parent.num_actions, [*arms_renewed, *range(parent.num_actions, card.num_actions)])


def _copy(before: Network, network: Network, taken: np.ndarray | None) -> None:
    """Gives `network` the variables of one with fewer arms, arm features, or another context.

    What is new begins at 0. With another context, the optimizer begins anew: `taken` says which place of the earlier
    observations each number has (`contexts.places`), and what is new is not standardised.
    """
    pairs = list(zip(network.variables(), before.variables(), strict=True))
    takes_observation = {
        id(one)
        for one in [
            *network.moments,
            network.layers[0],
            *([] if network.arm_features is not None else network.output[2:3]),
        ]
    }
    if taken is not None:
        pairs = pairs[: len(pairs) - len(network.optimizer.variables)]
    for variable, earlier in pairs:
        known = earlier.numpy()
        if taken is not None and id(variable) in takes_observation:
            known = known[taken]
            known[taken < 0] = 0.0
        value = np.zeros(variable.shape, variable.dtype.as_numpy_dtype)
        value[tuple(map(slice, known.shape))] = known
        variable.assign(value)
    if taken is not None:
        network.moments[1].assign(np.where(taken < 0, 1.0, network.moments[1].numpy()))


def _begin_arms(network: Network, known: int, new: list[int]) -> None:
    """Gives the arms `new` the mean coefficients of the first `known` arms, the best guess without any evidence."""
    others = np.setdiff1d(np.arange(known), new)
    if not new or not len(others):
        return
    for variable in network.output:
        value = variable.numpy()
        value[..., new] = value[..., others].mean(axis=-1, keepdims=True)
        variable.assign(value)


def _check_features(parent: PolicyCard, card: PolicyCard) -> None:
    """Raises InputError unless every arm feature of the parent has the same meaning now."""
    old, new = len(parent.catalogue[0].features), len(card.catalogue[0].features)
    if old != new:
        raise InputError(
            f"catalogue: features per item were {old} for parent {parent.version}, which learned from them; now {new}"
        )


def fit(
    network: Network,
    parts: "Sequence[Callable[[], Iterator[TrajectoryBatch]]]",
    hyperparameters: agents.Hyperparameters,
) -> list[float]:
    """Trains until the held-out loss stops falling, and leaves the network as it was at the lowest loss.

    Args:
      network: is changed in place.
      parts: each returns an iterator over its trajectories, the same at each call; at least one trajectory in all.
      hyperparameters: batch_size, epochs, patience.

    Returns:
      the held-out mean squared error before the first and after each epoch.
    """
    batch_size = int(hyperparameters["batch_size"])
    variables = [*network.layers, *network.output]

    def held_out_loss() -> float:
        scorer, squares, count = Scorer(network.arrays(np.zeros(0))), 0.0, 0
        for batch in itertools.chain.from_iterable(part() for part in parts):
            part = batch.take(slice(HELD_OUT - 1, None, HELD_OUT))
            mean = scorer.means(part.observation)
            squares += float(((mean[np.arange(len(part.action)), part.action] - part.reward) ** 2).sum())
            count += len(part.action)
        return squares / max(count, 1)

    losses = [held_out_loss()]
    best = [variable.numpy() for variable in variables]
    minibatches = _minibatches(parts, batch_size)
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


def _minibatches(parts: "Sequence[Callable[[], Iterator[TrajectoryBatch]]]", batch_size: int) -> Any:
    """The trajectories that are not held out, in batches of one size, prefetched.

    The parts are shuffled, and the trajectories within each batch that is read. Iterate over it once per epoch: each
    pass has another order.
    """
    import tensorflow as tf

    epochs = itertools.count()

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        rng = np.random.default_rng(next(epochs))
        for batch in itertools.chain.from_iterable(parts[index]() for index in rng.permutation(len(parts))):
            rows = np.flatnonzero(np.arange(len(batch.action)) % HELD_OUT != HELD_OUT - 1)
            part = batch.take(rng.permutation(rows))
            yield part.observation, part.action, part.reward

    first = next(itertools.chain.from_iterable(part() for part in parts))
    signature = tuple(
        tf.TensorSpec([None, *array.shape[1:]], array.dtype)
        for array in (first.observation, first.action, first.reward)
    )
    return tf.data.Dataset.from_generator(chunks, output_signature=signature).rebatch(batch_size).prefetch(2)

"""Sums of interactions in fixed point, by arm: what live learning adds to a base, and what the record must equal.

Observations x and rewards r are float32. They are rounded to multiples of 2^-20 and held as int64, so the sums

    counts = number of interactions   gram = sum of x x^T, on 2^-40    moment = sum of r x, on 2^-40

are exact integers. They do not depend on the order of the interactions, and an interaction that is added and taken away
again leaves nothing behind. So two ways to the same sums can be compared bit for bit.

An int64 holds sums up to 2^63. Every interaction therefore adds to its arm's `bound` the smallest integer that is not
below the largest of its x_i^2 and r^2. No sum of the arm exceeds `bound`. The sums of an arm are right, `in_range`, while
`bound` is at most 2^22: 4,194,304 interactions with values up to 1, or 41,943 with values up to 10, per arm and window.
Beyond that a reader must not use the arm's sums: its base serves that arm until a policy is trained on the window. A
value above 2^11 makes its arm's `bound` exceed the limit at once, and counts as 0 in the sums.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from contracts.trajectories import TrajectoryBatch

SCALE_BITS = 20
MAX_BOUND = 1 << 22
MAX_VALUE = 2.0**11
_BEYOND = 1 << 40  # added to `bound` for a value above MAX_VALUE: more than the limit, and far below 2^63 in any number
_PRODUCTS_PER_CHUNK = 1 << 20


class ArmSums(NamedTuple):
    """The sums of `M` arms of one window, with D-dimensional observations. `arms` ascends; all others are int64."""

    arms: np.ndarray  # [M] int32
    counts: np.ndarray  # [M]
    bound: np.ndarray  # [M]
    gram: np.ndarray  # [M, D (D + 1) / 2]: the upper triangle, row by row
    moment: np.ndarray  # [M, D]

    @property
    def observation_dim(self) -> int:
        """D, the length of an observation."""
        return self.moment.shape[1]

    @property
    def in_range(self) -> np.ndarray:
        """[M] bool: whether the sums of each arm are right; the module's docstring has the limit."""
        return self.bound <= MAX_BOUND


def empty(observation_dim: int) -> ArmSums:
    """The sums of no interactions."""
    nothing = np.zeros(0, np.int64)
    return ArmSums(
        np.zeros(0, np.int32),
        nothing,
        nothing,
        np.zeros((0, triangle(observation_dim)), np.int64),
        np.zeros((0, observation_dim), np.int64),
    )


def triangle(observation_dim: int) -> int:
    """Number of products x_i x_j with i <= j."""
    return observation_dim * (observation_dim + 1) // 2


def of_batch(batch: "TrajectoryBatch", num_actions: int) -> ArmSums:
    """The sums of decoded trajectories, such as those of an exported window.

    Raises ValueError when an action is not in [0, num_actions).
    """
    outside = (batch.action < 0) | (batch.action >= num_actions)
    if outside.any():
        raise ValueError(f"action: must be below {num_actions}, got {batch.action[outside][0]}")
    return of_interactions(batch.observation, batch.action, batch.reward)


def of_interactions(observation: np.ndarray, action: np.ndarray, reward: np.ndarray) -> ArmSums:
    """The sums of interactions: observation [N, D] float32, action [N] from 0, reward [N] float32.

    Rewards of another type are rounded to float32 first, because the record holds them so.
    """
    sums = empty(observation.shape[1])
    rows = max(1, _PRODUCTS_PER_CHUNK // triangle(observation.shape[1]))
    order = np.argsort(action, kind="stable")
    for begin in range(0, len(order), rows):
        chosen = order[begin : begin + rows]
        sums = add(sums, _of_sorted(observation[chosen], action[chosen], reward[chosen]))
    return sums


def _of_sorted(observation: np.ndarray, action: np.ndarray, reward: np.ndarray) -> ArmSums:
    x, beyond_x = _quantised(observation)
    r, beyond_r = _quantised(reward)
    largest = np.maximum(np.abs(x).max(axis=1), np.abs(r))
    bound = (largest * largest + (1 << 2 * SCALE_BITS) - 1) >> 2 * SCALE_BITS
    bound[beyond_x.any(axis=1) | beyond_r] = _BEYOND
    begins = np.flatnonzero(np.concatenate(([True], action[1:] != action[:-1])))
    left, right = np.triu_indices(x.shape[1])
    return ArmSums(
        action[begins].astype(np.int32),
        np.diff(np.append(begins, len(action))),
        np.add.reduceat(bound, begins),
        np.add.reduceat(x[:, left] * x[:, right], begins),
        np.add.reduceat(r[:, np.newaxis] * x, begins),
    )


def _quantised(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values as multiples of 2^-20 (0 for those above MAX_VALUE), and which those are."""
    wide = values.astype(np.float32).astype(np.float64)
    beyond = ~(np.abs(wide) <= MAX_VALUE)
    return np.rint(np.where(beyond, 0.0, wide) * 2.0**SCALE_BITS).astype(np.int64), beyond


def add(one: ArmSums, other: ArmSums) -> ArmSums:
    """The sums of both sets of interactions. An arm whose sums become 0 is left out."""
    return _combined(one, other, 1)


def subtract(one: ArmSums, other: ArmSums) -> ArmSums:
    """The sums without the interactions of `other`: what a retraction takes away. Counts may fall below 0."""
    return _combined(one, other, -1)


def _combined(one: ArmSums, other: ArmSums, sign: int) -> ArmSums:
    _check_dims(one, other)
    arms, place = np.unique(np.concatenate((one.arms, other.arms)), return_inverse=True)
    columns = []
    for mine, theirs in zip(one[1:], other[1:], strict=True):
        column = np.zeros((len(arms), *mine.shape[1:]), np.int64)
        column[place[: len(one.arms)]] = mine
        column[place[len(one.arms) :]] += sign * theirs
        columns.append(column)
    return _without_zeros(ArmSums(arms.astype(np.int32), *columns))


def _without_zeros(sums: ArmSums) -> ArmSums:
    used = (sums.counts != 0) | (sums.bound != 0) | sums.gram.any(axis=1) | sums.moment.any(axis=1)
    return sums if used.all() else ArmSums(*(column[used] for column in sums))


def _check_dims(one: ArmSums, other: ArmSums) -> None:
    if one.observation_dim != other.observation_dim:
        raise ValueError(f"sums of one observation_dim expected, got {one.observation_dim} and {other.observation_dim}")


def equal(one: ArmSums, other: ArmSums) -> bool:
    """Whether both are the same integers. Arms whose sums are 0 do not count."""
    return all(map(np.array_equal, _without_zeros(one), _without_zeros(other)))


def differing(one: ArmSums, other: ArmSums) -> np.ndarray:
    """The arms whose sums differ, ascending."""
    return subtract(one, other).arms


def select(sums: ArmSums, arms: np.ndarray) -> ArmSums:
    """The sums of `arms` (ascending), with zeros for those without interactions."""
    columns = []
    place = np.searchsorted(sums.arms, arms)
    inside = np.minimum(place, max(0, len(sums.arms) - 1))
    there = sums.arms[inside] == arms if len(sums.arms) else np.zeros(len(arms), bool)
    for column in sums[1:]:
        chosen = np.zeros((len(arms), *column.shape[1:]), np.int64)
        chosen[there] = column[inside[there]]
        columns.append(chosen)
    return ArmSums(arms.astype(np.int32), *columns)


def replace(sums: ArmSums, newer: ArmSums) -> ArmSums:
    """`sums` with the arms of `newer` in place of its own: how a reader applies cumulative sums of changed arms."""
    kept = ~np.isin(sums.arms, newer.arms)
    return add(ArmSums(*(column[kept] for column in sums)), newer)


class Evidence(NamedTuple):
    """Sums as the numbers that linear models are solved from, float64, for `M` arms."""

    arms: np.ndarray  # [M] int32
    a: np.ndarray  # [M, D, D]: sum of x x^T
    b: np.ndarray  # [M, D]: sum of r x
    n: np.ndarray  # [M]


def evidence(sums: ArmSums) -> Evidence:
    """The sums as float64, of the arms that are in range."""
    right = sums.in_range
    dim = sums.observation_dim
    upper = np.triu_indices(dim)
    a = np.zeros((int(right.sum()), dim, dim))
    a[:, upper[0], upper[1]] = a[:, upper[1], upper[0]] = sums.gram[right] / 2.0 ** (2 * SCALE_BITS)
    return Evidence(sums.arms[right], a, sums.moment[right] / 2.0 ** (2 * SCALE_BITS), sums.counts[right].astype(float))


def encode(sums: ArmSums) -> list[bytes]:
    """The columns as little-endian bytes; the same sums give the same bytes."""
    return [column.astype(f"<i{column.itemsize}", copy=False).tobytes() for column in sums]


def decode(columns: list[bytes], observation_dim: int) -> ArmSums:
    """The inverse of `encode`. Raises ValueError when the columns do not fit together."""
    types = ("<i4", "<i8", "<i8", "<i8", "<i8")
    if len(columns) != len(types):
        raise ValueError(f"{len(types)} columns of sums expected, got {len(columns)}")
    arms, count, bound, gram, moment = (np.frombuffer(data, kind) for data, kind in zip(columns, types, strict=True))
    size = len(arms)
    widths = (1, 1, 1, triangle(observation_dim), observation_dim)
    found = [len(column) for column in (arms, count, bound, gram, moment)]
    if found != [size * width for width in widths]:
        raise ValueError(f"columns of {size} arms with observation_dim {observation_dim} expected, got lengths {found}")
    if (np.diff(arms) <= 0).any():
        raise ValueError("arms must ascend")
    return ArmSums(
        arms, count, bound, gram.reshape(size, triangle(observation_dim)), moment.reshape(size, observation_dim)
    )

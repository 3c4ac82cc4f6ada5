"""The TFRecord codec of trajectories: encoding and decoding side by side. The only module here that needs TensorFlow.

One interaction is one `tf.train.Example`:

    observation  float [D]
    action       int   [1]   in [0, K)
    reward       float [1]
    propensity   float [1]   in (0, 1]
    defaulted    int   [1]   1 when the reward is the default one
    candidates   int   [n]   the arms on offer; not in a record whose decision does not list them
    slate_id     bytes [1]   the slate that the decision belongs to; not in a record of a decision outside a slate
    place        int   [1]   its place in the slate, from 0; only with slate_id
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from contracts.id_hashes import ID_BYTES
from contracts.offers import Offers

_PLACE_BYTES = 2  # at most: contracts.records.MAX_SLATE needs no more


class TrajectoryBatch(NamedTuple):
    """`N` interactions as arrays, one row each. `candidates`, `slate_id` and `place` are None if no row has them."""

    observation: np.ndarray  # [N, D] float32
    action: np.ndarray  # [N] int32
    reward: np.ndarray  # [N] float32
    propensity: np.ndarray  # [N] float32
    defaulted: np.ndarray  # [N] bool
    candidates: Offers | None = None
    slate_id: np.ndarray | None = None  # [N] bytes of length 36; b"" outside a slate
    place: np.ndarray | None = None  # [N] int32, from 0; 0 outside a slate

    def take(self, rows: np.ndarray | slice) -> "TrajectoryBatch":
        """The interactions of `rows`: a slice, indexes, or true where a row is wanted."""
        return TrajectoryBatch(
            observation=self.observation[rows],
            action=self.action[rows],
            reward=self.reward[rows],
            propensity=self.propensity[rows],
            defaulted=self.defaulted[rows],
            candidates=None if self.candidates is None else self.candidates.take(rows),
            slate_id=None if self.slate_id is None else self.slate_id[rows],
            place=None if self.place is None else self.place[rows],
        )

    @property
    def offers(self) -> Offers:
        """What was on offer in each row."""
        return self.candidates if self.candidates is not None else Offers.all_arms(len(self.action))


def join(batches: Sequence[TrajectoryBatch]) -> TrajectoryBatch:
    """The interactions of all batches, at least one, in order."""
    candidates = slate_id = place = None
    if any(batch.candidates is not None for batch in batches):
        candidates = Offers.join([batch.offers for batch in batches])
    if any(batch.slate_id is not None for batch in batches):
        slates = [_slates(batch) for batch in batches]
        slate_id, place = (np.concatenate(columns) for columns in zip(*slates, strict=True))
    return TrajectoryBatch(
        observation=np.concatenate([batch.observation for batch in batches]),
        action=np.concatenate([batch.action for batch in batches]),
        reward=np.concatenate([batch.reward for batch in batches]),
        propensity=np.concatenate([batch.propensity for batch in batches]),
        defaulted=np.concatenate([batch.defaulted for batch in batches]),
        candidates=candidates,
        slate_id=slate_id,
        place=place,
    )


def encode(batch: TrajectoryBatch) -> Iterator[bytes]:
    """Serialized Examples in the order of the rows, as protobuf's deterministic mode writes them.

    Records whose values take the same numbers of bytes differ in those bytes alone. The values are filled into copies of
    one template, all records at once: several times as fast as building one Example after the other.
    tfx_bsl's encoder is fast too, but writes a record's features in an order that differs between processes.
    """
    action, action_bytes = _varints(batch.action)
    offers, offers_bytes, offers_starts = _packed(batch.offers)
    slate_id, place, place_bytes = _slate_bytes(batch)
    records: list[bytes] = [b""] * len(batch.action)
    for shape, rows in _distinct(action_bytes, offers_bytes, place_bytes):
        layout = _layout(batch.observation.shape[1], shape)
        block = np.tile(layout.template, (len(rows), 1))
        values = {
            "action": action[rows, : shape.action],
            "defaulted": batch.defaulted[rows, np.newaxis].astype(np.uint8),
            "observation": _float_bytes(batch.observation[rows]),
            "propensity": _float_bytes(batch.propensity[rows]),
            "reward": _float_bytes(batch.reward[rows]),
        }
        if shape.candidates:
            values["candidates"] = offers[offers_starts[rows, np.newaxis] + np.arange(shape.candidates)]
        if shape.place:
            values |= {"slate_id": slate_id[rows], "place": place[rows, : shape.place]}
        for name, value in values.items():
            block[:, layout.places[name]] = value
        whole, length = block.tobytes(), block.shape[1]
        parts = [whole[begin : begin + length] for begin in range(0, len(whole), length)]
        if len(parts) == len(records):
            return iter(parts)
        for row, part in zip(rows.tolist(), parts, strict=True):
            records[row] = part
    return iter(records)


def parse(serialized: tf.Tensor, observation_dim: int) -> dict[str, tf.Tensor]:
    """Whole batches at once, in graph or eager mode.

    Args:
      serialized: [N] string, serialized Examples.
      observation_dim: D.

    Returns:
      `observation` [N, D] float32, `action` [N] int32, `reward` and `propensity` [N] float32, `defaulted` [N] bool,
      `candidates` [N, None] ragged int32, `slate_id` [N] string ("" outside a slate), `place` [N] int32.

    Raises:
      tf.errors.InvalidArgumentError: a record is not such an Example, or its observation has another length.
    """
    features = tf.io.parse_example(
        serialized,
        {
            "observation": tf.io.FixedLenFeature([observation_dim], tf.float32),
            "action": tf.io.FixedLenFeature([], tf.int64),
            "reward": tf.io.FixedLenFeature([], tf.float32),
            "propensity": tf.io.FixedLenFeature([], tf.float32),
            "defaulted": tf.io.FixedLenFeature([], tf.int64, default_value=0),
            "candidates": tf.io.RaggedFeature(tf.int64),
            "slate_id": tf.io.FixedLenFeature([], tf.string, default_value=""),
            "place": tf.io.FixedLenFeature([], tf.int64, default_value=0),
        },
    )
    return features | {
        "action": tf.cast(features["action"], tf.int32),
        "defaulted": tf.cast(features["defaulted"], tf.bool),
        "candidates": tf.cast(features["candidates"], tf.int32),
        "place": tf.cast(features["place"], tf.int32),
    }


def decode(serialized: list[bytes] | np.ndarray | tf.Tensor, observation_dim: int) -> TrajectoryBatch:
    """The inverse of `encode`; same arguments and errors as `parse`."""
    features = parse(
        tf.constant(serialized, tf.string) if isinstance(serialized, list) else serialized, observation_dim
    )
    slate_id = features["slate_id"].numpy().astype(f"S{ID_BYTES}")
    in_slate = bool((slate_id != b"").any())
    lists = features["candidates"]
    candidates = Offers(lists.values.numpy(), lists.row_lengths().numpy().astype(np.int64))
    return TrajectoryBatch(
        observation=features["observation"].numpy(),
        action=features["action"].numpy(),
        reward=features["reward"].numpy(),
        propensity=features["propensity"].numpy(),
        defaulted=features["defaulted"].numpy(),
        candidates=candidates if len(candidates.values) else None,
        slate_id=slate_id if in_slate else None,
        place=features["place"].numpy() if in_slate else None,
    )


def decode_rows(rows: np.ndarray, observation_dim: int) -> TrajectoryBatch:
    """Decodes serialized Examples of one length, [N, L] uint8, in their order. Same errors as `parse`.

    What `encode` writes has its values at the same places in every record of one shape, and few shapes have one length:
    the values are taken from there, all records at once, in a fifth of the time that parsing takes. Records in any other
    form are parsed.
    """
    batches, order = [], []
    left = np.arange(len(rows))
    for shape in _shapes(observation_dim, rows.shape[1]):
        layout = _layout(observation_dim, shape)
        mine = rows if len(left) == len(rows) else rows[left]
        fits = np.ones(len(mine), bool)
        if not all((mine[:, place] == layout.template[place]).all() for place in layout.fixed):
            for place in layout.fixed:
                fits &= (mine[:, place] == layout.template[place]).all(axis=1)
        if fits.any():
            batch, valid = _by_place(mine if fits.all() else mine[fits], layout)
            fits[fits] = valid
            batches.append(batch if valid.all() else batch.take(valid))
            order.append(left[fits])
            left = left[~fits]
        if not len(left):
            break
    if len(left):
        batches.append(decode([row.tobytes() for row in rows[left]], observation_dim))
        order.append(left)
    if len(batches) == 1:
        return batches[0]
    return join(batches).take(np.argsort(np.concatenate(order)))


class _Shape(NamedTuple):
    """How many bytes the values of varying size take; 0: the record has no such feature."""

    action: int
    candidates: int
    place: int


class _Layout(NamedTuple):
    """The places of the values in a record that `encode` writes, and the bytes at all other places."""

    template: np.ndarray  # [L] uint8
    fixed: list[slice]
    places: dict[str, slice]


@lru_cache(maxsize=4096)
def _layout(observation_dim: int, shape: _Shape) -> _Layout:
    # Two records that differ in every byte of every value, and nowhere else, show where the values are.
    records = []
    for byte in (0x11, 0x22):
        number = float(np.frombuffer(bytes([byte] * 4), np.float32)[0])
        example = tf.train.Example()
        feature = example.features.feature
        feature["observation"].float_list.value.extend([number] * observation_dim)
        feature["action"].int64_list.value.append(sum(byte << (7 * index) for index in range(shape.action)))
        feature["reward"].float_list.value.append(number)
        feature["propensity"].float_list.value.append(number)
        feature["defaulted"].int64_list.value.append(int(byte == 0x22))
        if shape.candidates:
            feature["candidates"].int64_list.value.extend([byte] * shape.candidates)
        if shape.place:
            feature["slate_id"].bytes_list.value.append(bytes([byte] * ID_BYTES))
            feature["place"].int64_list.value.append(sum(byte << (7 * index) for index in range(shape.place)))
        records.append(np.frombuffer(example.SerializeToString(deterministic=True), np.uint8))
    differs = np.flatnonzero(records[0] != records[1])
    sizes = {  # features are written in the order of their names
        "action": shape.action,
        "candidates": shape.candidates,
        "defaulted": 1,
        "observation": 4 * observation_dim,
        "place": shape.place,
        "propensity": 4,
        "reward": 4,
        "slate_id": ID_BYTES if shape.place else 0,
    }
    places, fixed, first, end = {}, [], 0, 0
    for name, size in sizes.items():
        if size:
            begin = int(differs[first])
            fixed.append(slice(end, begin))
            end = begin + size
            places[name] = slice(begin, end)
            first += size
    return _Layout(records[0], [*fixed, slice(end, None)], places)


@lru_cache(maxsize=4096)
def _shapes(observation_dim: int, length: int) -> list[_Shape]:
    """The shapes of the records of `length` bytes that `encode` writes, those without candidates first."""
    found: list[_Shape] = []
    for place in range(_PLACE_BYTES + 1):
        for action in range(1, 6):
            without = len(_layout(observation_dim, _Shape(action, 0, place)).template)
            if without == length:
                found.insert(0, _Shape(action, 0, place))
            # All features stand in one field of the Example, the candidates in one entry of them.
            entry = _content(length) - _content(without)
            for candidates in range(max(entry - _MOST_AROUND, 1), entry):
                if entry == _field(_field(len(_CANDIDATES)) + _field(_field(_field(candidates)))):
                    found.append(_Shape(action, candidates, place))
    return found


_CANDIDATES = "candidates"
_MOST_AROUND = 40  # bytes around packed candidates: their feature's name, and five lengths of at most five bytes


def _field(size: int) -> int:
    """The bytes of a protobuf field that holds `size` bytes: the tag, their number as a varint, and they themselves."""
    return 1 + max(-(-size.bit_length() // 7), 1) + size


def _content(length: int) -> int:
    """The inverse of `_field`."""
    return next(size for size in range(max(length - 11, 0), length) if _field(size) == length)


def _by_place(rows: np.ndarray, layout: _Layout) -> tuple[TrajectoryBatch, np.ndarray]:
    """What stands at the places of the values in records of that layout, and which of the records are valid, [N] bool."""
    values = {name: rows[:, place] for name, place in layout.places.items()}
    action, valid = _number(values["action"])
    valid &= values["defaulted"][:, 0] < 0x80
    candidates = slate_id = place = None
    if "candidates" in values:
        candidates, whole = _unpacked(values["candidates"])
        valid &= whole
    if "slate_id" in values:
        slate_id = np.ascontiguousarray(values["slate_id"]).view(f"S{ID_BYTES}")[:, 0]
        place, whole = _number(values["place"])
        valid &= whole
    batch = TrajectoryBatch(
        observation=_float32(values["observation"]),
        action=action,
        reward=_float32(values["reward"])[:, 0],
        propensity=_float32(values["propensity"])[:, 0],
        defaulted=values["defaulted"][:, 0] != 0,
        candidates=candidates,
        slate_id=slate_id,
        place=place,
    )
    return batch, valid


def _float32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view("<f4")


def _float_bytes(values: np.ndarray) -> np.ndarray:
    """[N] or [N, D] float32 -> their bytes, [N, 4] or [N, 4 D]."""
    return np.ascontiguousarray(values.astype("<f4", copy=False)).view(np.uint8).reshape(len(values), -1)


def _varints(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Base-128 varints of int32 values from 0: their bytes [N, 5], and how many each has [N]."""
    wide = values.astype(np.int64)[:, np.newaxis] >> (7 * np.arange(5))
    sizes = np.maximum((wide > 0).sum(axis=1), 1)
    more = np.arange(5) < sizes[:, np.newaxis] - 1
    return ((wide & 0x7F) | np.where(more, 0x80, 0)).astype(np.uint8), sizes


def _number(varint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, size] bytes -> the numbers, [N] int32, and whether each is one varint of that size within int32, [N] bool."""
    wide = varint.astype(np.int64)
    valid = (wide[:, :-1] >= 0x80).all(axis=1) & (wide[:, -1] < 0x80)  # every byte but the last has this bit
    number = ((wide & 0x7F) << (7 * np.arange(wide.shape[1]))).sum(axis=1)
    return number.astype(np.int32), valid & (number <= np.iinfo(np.int32).max)


def _packed(offers: Offers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The varints of all candidates one after the other, how many bytes each row has, and where its bytes start."""
    varints, sizes = _varints(offers.values)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    starts = ends[offers.starts]
    return varints[np.arange(5) < sizes[:, np.newaxis]], ends[offers.starts + offers.lengths] - starts, starts


def _unpacked(packed: np.ndarray) -> tuple[Offers, np.ndarray]:
    """[N, size] bytes of varints -> the numbers of each row, and whether they are varints within int32, [N] bool."""
    size = packed.shape[1]
    flat = packed.reshape(-1).astype(np.int64)
    last = np.flatnonzero(flat < 0x80)
    first = np.concatenate([[0], last[:-1] + 1]) if len(last) else last
    lengths = (packed < 0x80).sum(axis=1)
    valid = packed[:, -1] < 0x80
    digits = last - first + 1
    numbers = np.zeros(len(last), np.int64)
    for index in range(5):
        has = digits > index
        numbers[has] |= (flat[first[has] + index] & 0x7F) << (7 * index)
    wrong = (digits > 5) | (numbers > np.iinfo(np.int32).max)
    valid[last[wrong] // size] = False
    return Offers(numbers.astype(np.int32), lengths), valid


def _slates(batch: TrajectoryBatch) -> tuple[np.ndarray, np.ndarray]:
    """The slate id and the place of each row."""
    count = len(batch.action)
    if batch.slate_id is None or batch.place is None:
        return np.zeros(count, f"S{ID_BYTES}"), np.zeros(count, np.int32)
    return batch.slate_id, batch.place


def _slate_bytes(batch: TrajectoryBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bytes of slate ids [N, 36] and places [N, 5], and how many of a place's are written [N]: 0 outside a slate."""
    slate_id, number = _slates(batch)
    place, sizes = _varints(number)
    ids = np.ascontiguousarray(slate_id, f"S{ID_BYTES}").view(np.uint8).reshape(len(number), ID_BYTES)
    return ids, place, np.where(slate_id == b"", 0, sizes)


def _distinct(*sizes: np.ndarray) -> Iterator[tuple[_Shape, np.ndarray]]:
    """The different shapes of the rows, each with its rows."""
    code = np.zeros(len(sizes[0]), np.int64)
    for size in sizes:
        code = code * (int(size.max(initial=0)) + 1) + size
    order = np.argsort(code, kind="stable")
    begins = np.flatnonzero(np.diff(code[order], prepend=-1))
    for rows in np.split(order, begins[1:]) if len(begins) else []:
        yield _Shape(*(int(size[rows[0]]) for size in sizes)), rows

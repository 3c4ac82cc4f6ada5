"""What was on offer in each of many decisions, as two arrays: lists of different lengths without a Python object each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True, eq=False)
class Offers:
    """The arms on offer in each of N decisions; an empty list means all arms."""

    values: np.ndarray  # [M] int32, the lists one after the other
    lengths: np.ndarray  # [N] int64

    @classmethod
    def of(cls, lists: Iterable[Sequence[int]]) -> Self:
        """From one list of arms per decision."""
        lists = list(lists)
        values = [np.asarray(one, np.int32) for one in lists if len(one)]
        return cls(
            np.concatenate(values) if values else np.zeros(0, np.int32), np.array([len(one) for one in lists], np.int64)
        )

    @classmethod
    def all_arms(cls, count: int) -> Self:
        """All arms in each of `count` decisions."""
        return cls(np.zeros(0, np.int32), np.zeros(count, np.int64))

    @classmethod
    def join(cls, parts: Sequence["Offers"]) -> Self:
        """Those of all parts, in order."""
        return cls(np.concatenate([part.values for part in parts]), np.concatenate([part.lengths for part in parts]))

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def starts(self) -> np.ndarray:
        """[N] where each list begins in `values`."""
        return np.asarray(np.cumsum(self.lengths) - self.lengths)

    @property
    def rows(self) -> np.ndarray:
        """[M] the decision that each of `values` belongs to."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def take(self, rows: np.ndarray | slice) -> "Offers":
        """Those of `rows`: a slice, indexes, or true where a row is wanted."""
        lengths = self.lengths[rows]
        begins = np.cumsum(lengths) - lengths
        places = np.repeat(self.starts[rows] - begins, lengths) + np.arange(lengths.sum())
        return Offers(self.values[places], lengths)

    def counts(self, num_actions: int) -> np.ndarray:
        """[N] how many of `num_actions` arms were on offer."""
        return np.where(self.lengths > 0, self.lengths, num_actions)

    def include(self, actions: np.ndarray) -> np.ndarray:
        """[N] bool: whether each of `actions` [N] was on offer."""
        found = np.bincount(self.rows, self.values == np.repeat(actions, self.lengths), len(self))
        return np.asarray((found > 0) | (self.lengths == 0))

    def mask(self, num_actions: int) -> np.ndarray:
        """[N, num_actions] bool: true where an arm was on offer. Arms from `num_actions` on are left out."""
        mask = np.repeat((self.lengths == 0)[:, np.newaxis], num_actions, axis=1)
        known = self.values < num_actions
        mask[self.rows[known], self.values[known]] = True
        return mask

    def tolist(self) -> list[list[int]]:
        """One list per decision."""
        return [part.tolist() for part in np.split(self.values, np.cumsum(self.lengths)[:-1])] if len(self) else []

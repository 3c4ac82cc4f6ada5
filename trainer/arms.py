"""Items as arms: their features, which are known before an item is first shown."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from contracts import items
from contracts.items import Item
from contracts.policies import ArmColumn, Exploration
from contracts.windows import TrainingWindow

if TYPE_CHECKING:
    from contracts.trajectories import TrajectoryBatch

MAX_COLUMNS = 200  # of attributes: a model over arm features has as many weights as columns times observation_dim


def columns(catalogue: Sequence[Item], before: Sequence[ArmColumn] = ()) -> list[ArmColumn]:
    """The columns that the catalogue's attributes make: one per number, and one per category.

    A number is centred on its mean over the catalogue and divided by its standard deviation. Of more than MAX_COLUMNS
    columns the categories that the fewest items have are left out.

    Args:
      catalogue: retired items add no columns.
      before: the columns of an earlier catalogue. They come first and are unchanged, so that what was learned with them
        keeps its meaning.
    """
    numbers: dict[str, list[float]] = {}
    categories: Counter[tuple[str, str]] = Counter()
    for item in catalogue:
        if item.status != "retired":
            for name, number in items.numbers_of(item).items():
                numbers.setdefault(name, []).append(number)
            categories.update((name, one) for name, some in items.categories_of(item).items() for one in some)
    found = []
    for name, values in numbers.items():
        spread = float(np.std(values))
        found.append(ArmColumn(attribute=name, center=float(np.mean(values)), scale=spread if spread > 0 else 1.0))
    common = [key for key, _ in categories.most_common(max(MAX_COLUMNS - len(found), 0))]
    kept = set(common)
    found += [ArmColumn(attribute=name, category=one) for name, one in categories if (name, one) in kept]
    known = {(column.attribute, column.category) for column in before}
    new = [column for column in found if (column.attribute, column.category) not in known]
    return [*before, *new[: max(MAX_COLUMNS - len(before), 0)]]


def arm_features(catalogue: Sequence[Item], by: Sequence[ArmColumn]) -> np.ndarray:
    """The features of every item.

    Returns:
      [K, F] float64: a constant 1, the item's `features`, and a value per column of `by`: a number less its centre, by its
      scale, and 0 where the item has none; 1 where the item has the category, else 0. So more columns are more at the
      end.
    """
    known = len(catalogue[0].features)
    found = np.zeros((len(catalogue), 1 + known + len(by)))
    found[:, 0] = 1.0
    places = {(column.attribute, column.category): place for place, column in enumerate(by, 1 + known)}
    for row, item in zip(found, catalogue, strict=True):
        row[1 : 1 + known] = item.features
        for name, number in items.numbers_of(item).items():
            if (place := places.get((name, None))) is not None:
                column = by[place - 1 - known]
                row[place] = (number - column.center) / column.scale
        for name, some in items.categories_of(item).items():
            for one in some:
                if (place := places.get((name, one))) is not None:
                    row[place] = 1.0
    return found


def own(batch: "TrajectoryBatch", catalogue: Sequence[Item], window: TrainingWindow) -> "TrajectoryBatch":
    """The interactions of a window whose actions stood for the same items as in `catalogue`.

    An action is used again for a new item once its old item has been retired for long enough. Windows from before then,
    which training from scratch or a correction reads again, say nothing about the new item. The window in which it was
    added does: its old item was not on offer any more.
    """
    others = of_others(catalogue, window)
    if not others:
        return batch
    keep = ~np.isin(batch.action, others)
    return batch if keep.all() else batch.take(keep)


def of_others(catalogue: Sequence[Item], window: TrainingWindow) -> list[int]:
    """The actions whose items of `catalogue` were added after `window`."""
    return [item.action for item in catalogue if item.since is not None and item.since >= window.end]


def new_actions(catalogue: Sequence[Item], num_samples: np.ndarray, exploration: Exploration) -> list[int]:
    """The actions of active items that were added later, and that the policy knows too little of to choose them itself.

    An item stops being new after `exploration.new_item_samples` of its decisions, or as many as the median active item has:
    from then on its uncertainty is no larger than that of other items, so it draws no more exploration than they do.

    Args:
      catalogue: the policy's.
      num_samples: [K], interactions with each arm that the policy has learned from.
      exploration: the policy's.
    """
    active = [item.action for item in catalogue if item.status == "active"]
    enough = min(exploration.new_item_samples, float(np.median(num_samples[active])))
    return [
        item.action
        for item in catalogue
        if item.status == "active" and item.since is not None and num_samples[item.action] < enough
    ]


def has_features(catalogue: Sequence[Item]) -> bool:
    """Whether anything is known of an item that `arm_features` can tell items apart by."""
    return any(item.features or items.numbers_of(item) or items.categories_of(item) for item in catalogue)

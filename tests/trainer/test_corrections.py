"""A policy whose window was revised: as if it had been trained on the revision from the start."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest

from beam_jobs.window_files import WindowOrigin, WrittenBucket, write_file, write_manifest
from contracts.errors import InputError
from contracts.policies import TrainedWindow
from contracts.trajectories import TrajectoryBatch, join
from contracts.windows import Split
from tests.trainer.test_training import catalogue
from tests.windows import consecutive_windows, write_window
from trainer import checkpoint, corrections, dataset, training
from trainer.dataset import ReadyWindow

NUM_ACTIONS, DIM = 5, 3
WINDOWS = consecutive_windows(datetime(2026, 1, 1, tzinfo=UTC), 60, 4)


def trajectories(count: int, seed: int, exact: bool = False) -> TrajectoryBatch:
    """Random ones; `exact`: of small binary fractions, whose sums need no rounding."""
    rng = np.random.default_rng(seed)

    def values(*shape: int) -> np.ndarray:
        drawn = rng.integers(-64, 65, shape) / 64 if exact else rng.normal(size=shape)
        return drawn.astype(np.float32)

    return TrajectoryBatch(
        observation=values(count, DIM),
        action=rng.integers(0, NUM_ACTIONS, count).astype(np.int32),
        reward=values(count),
        propensity=np.full(count, 1 / NUM_ACTIONS, np.float32),
        defaulted=np.zeros(count, bool),
    )


def revise(before: ReadyWindow, train: TrajectoryBatch, holdback: TrajectoryBatch) -> ReadyWindow:
    """Writes the next revision of a window."""
    manifest = before.manifest
    folder = before.folder.with_name(f"{manifest.window.folder}.r{manifest.revision + 1}")
    folder.mkdir()
    splits: list[tuple[Split, TrajectoryBatch]] = [("train", train), ("holdback", holdback)]
    files = [write_file(str(folder), f"part-{split}-00000.tfrecord", split, batch) for split, batch in splits]
    records = sum(file.records for file in files)
    counts = msgspec.structs.replace(manifest.counts, decisions=records, rewards=records)
    written = WrittenBucket(files, counts, {})
    origin = WindowOrigin(revises=manifest)
    revised = write_manifest(written, str(folder), manifest.window, manifest.settings, DIM, origin)
    assert revised.revision == manifest.revision + 1
    return ReadyWindow(folder, revised)


class World:
    """Windows in which one came late: as it was first exported, and with everything."""

    def __init__(self, root: Path, exact: bool, half_life: float = 0.0, algorithm: str = "lin_ucb") -> None:
        self.exact = exact
        self.root = root
        self.algorithm = algorithm
        linear = algorithm == "lin_ucb"
        self.hyperparameters: dict[str, float | int | str | bool] = (
            {"half_life": half_life} if linear else {"epochs": 2}
        )

    def part(self, count: int, seed: int) -> TrajectoryBatch:
        return trajectories(count, seed, self.exact)

    def window(self, place: str, index: int, late: bool = True) -> ReadyWindow:
        train, holdback = self.part(100, index), self.part(20, 10 + index)
        if index == 0 and late:
            train, holdback = join([train, self.part(9, 90)]), join([holdback, self.part(3, 91)])
        return write_window(self.root / place / "windows", WINDOWS[index], train, holdback)

    def train(self, place: str, parent: str | None, **more: object) -> training.PolicyCard:
        return training.train(
            training.Settings(
                windows=self.root / place / "windows",
                policies=self.root / place / "policies",
                num_actions=NUM_ACTIONS,
                catalogue=catalogue(),
                parent=parent,
                algorithm=self.algorithm,
                hyperparameters=self.hyperparameters,
                **more,  # type: ignore[arg-type]
            )
        )

    def late_and_whole(self, **more: object) -> tuple[checkpoint.SufficientStatistics, checkpoint.SufficientStatistics]:
        """The statistics of a policy that was corrected in its third training, and of one that never had to be."""
        for place in ("late", "whole"):
            parent = None
            for index in range(3):
                first = self.window(place, index, late=place == "whole")
                if index == 0:
                    before = first
                if index == 2 and place == "late":
                    train, holdback = self.part(100, 0), self.part(20, 10)
                    revise(before, join([train, self.part(9, 90)]), join([holdback, self.part(3, 91)]))
                parent = self.train(place, parent, **more).version
            if place == "late":
                late = checkpoint.read(self.root / place / "policies" / str(parent))
                card = training.artifact.read_card(self.root / place / "policies", str(parent))
        assert card is not None
        assert sorted((WINDOWS.index(one.window), one.split, one.records, one.revision) for one in card.trained_on) == [
            (0, "holdback", 23, 1),
            (0, "train", 109, 1),
            (1, "holdback", 20, 0),
            (1, "train", 100, 0),
            (2, "train", 100, 0),
        ]
        return late, checkpoint.read(self.root / "whole" / "policies" / str(parent))


def test_where_no_sum_is_rounded_it_equals_training_from_scratch_to_the_last_bit(tmp_path: Path) -> None:
    late, whole = World(tmp_path, exact=True).late_and_whole()
    for one, two in zip((late.a, late.b, late.n), (whole.a, whole.b, whole.n), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("half_life", [0.0, 1.0, 1.7])
@pytest.mark.parametrize("beam", [False, True])
def test_else_it_equals_it_except_for_rounding(tmp_path: Path, half_life: float, beam: bool) -> None:
    more = {"beam_options": []} if beam else {}
    late, whole = World(tmp_path, exact=False, half_life=half_life).late_and_whole(**more)
    for one, two in zip((late.a, late.b, late.n), (whole.a, whole.b, whole.n), strict=True):
        assert np.abs(one - two).max() <= 4e-15 * np.abs(two).max()


def test_a_revision_alone_gives_a_new_policy_and_then_nothing_more(tmp_path: Path) -> None:
    world = World(tmp_path, exact=False)
    before = world.window("late", 0, late=False)
    world.window("late", 1)
    first = world.train("late", None)
    revise(before, join([world.part(100, 0), world.part(9, 90)]), world.part(20, 10))
    second = world.train("late", first.version)
    assert second.version != first.version
    assert [(one.split, one.records, one.revision) for one in second.trained_on] == [
        ("train", 109, 1),
        ("holdback", 20, 1),
        ("train", 100, 0),
    ]
    assert world.train("late", second.version) == second


def test_a_revision_whose_earlier_one_is_gone_is_one_line(tmp_path: Path) -> None:
    world = World(tmp_path, exact=False)
    before = world.window("late", 0, late=False)
    world.window("late", 1)
    first = world.train("late", None)
    revise(before, join([world.part(100, 0), world.part(9, 90)]), world.part(20, 10))
    for path in [*before.folder.iterdir()]:
        path.unlink()
    before.folder.rmdir()
    with pytest.raises(
        InputError, match=r"window=20260101T000000.000000Z: is gone, and .*\.r1 replaces it: keep every"
    ):
        world.train("late", first.version)


def test_a_network_goes_on_with_the_records_that_it_has_not_seen(tmp_path: Path) -> None:
    world = World(tmp_path, exact=False, algorithm="neural_boltzmann")
    before = world.window("late", 0, late=False)
    world.window("late", 1)
    first = world.train("late", None)
    late = world.part(9, 90)
    after = revise(before, join([world.part(100, 0), late]), world.part(20, 10))
    [fix, unchanged] = corrections.needed(
        world.root / "late" / "windows", dataset.ready_windows(world.root / "late" / "windows"), first
    )
    found = join(list(corrections.added(fix, NUM_ACTIONS)))
    np.testing.assert_array_equal(found.observation, late.observation)
    np.testing.assert_array_equal(found.reward, late.reward)
    assert list(corrections.added(unchanged, NUM_ACTIONS)) == []
    second = world.train("late", first.version)
    samples = checkpoint.read(world.root / "late" / "policies" / second.version).n
    assert samples.sum() == 220 + 9
    assert TrainedWindow(window=WINDOWS[0], split="train", records=109, revision=1) in second.trained_on
    assert after.manifest.revises == before.manifest.folder

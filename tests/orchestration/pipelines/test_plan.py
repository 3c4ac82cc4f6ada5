"""Which windows a run is to do: a table of truths, on manifests and cards that were really written."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from contracts import policies
from contracts.errors import InputError
from contracts.event_segments import SEALED_SUFFIX, segment_name
from contracts.policies import TrainedWindow
from contracts.windows import MANIFEST_NAME, Manifest, TrainingWindow, WindowCounts, encode_manifest, revision_folder
from orchestration.pipelines import plan
from tests.linear_policies import point_at, write_policy

START = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = plan.WindowGrid(missing_reward="drop")
LOG = plan.GeneratedLog(num_decisions=100, num_actions=10, rank=5)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def export(root: Path, begin: float, end: float, revision: int = 0) -> TrainingWindow:
    window = TrainingWindow(at(begin), at(end))
    folder = root / "windows" / revision_folder(window, revision)
    folder.mkdir(parents=True)
    manifest = Manifest(
        window=window,
        reward_window_seconds=2,
        settle_seconds=1,
        missing_reward="drop",
        default_reward=0,
        holdback_share=0.1,
        observation_dim=3,
        files=[],
        counts=WindowCounts(**dict.fromkeys(WindowCounts.__struct_fields__, 0)),
        policy_versions={},
        revision=revision,
    )
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
    return window


def champion(root: Path, *trained: TrainingWindow) -> None:
    store = root / "policies"
    card = write_policy(store / "first")
    seen = [TrainedWindow(window=window, split="train", records=1) for window in trained]
    (store / "first" / policies.CARD_NAME).write_bytes(
        policies.encode_json(msgspec.structs.replace(card, trained_on=seen))
    )
    point_at(store, "first")


def retrain(root: Path, until: float) -> list[tuple[float, float]]:
    made = plan.for_retrain(root, "r", SETTINGS, at(until))
    assert bool(made.reason) == (not made.windows)
    return [((w.start - START).total_seconds(), (w.end - START).total_seconds()) for w in made.windows]


@pytest.mark.parametrize(
    ("exported", "trained", "until", "windows"),
    [
        ([(0, 5)], 1, 7.9, []),  # [5, 10) is not over
        ([(0, 5)], 1, 12.9, []),  # it is, but its rewards may be on their way
        ([(0, 5)], 1, 13, [(5, 10)]),
        ([(0, 5)], 1, 29, [(5, 25)]),  # late: one longer window
        ([(0, 5), (5, 10)], 1, 13, [(5, 10)]),  # exported, not trained on: a run failed, or the candidate was refused
        ([(0, 5), (5, 10)], 1, 18, [(5, 10), (10, 15)]),
        ([(0, 5), (5, 10)], 2, 13, []),
        ([(0, 5), (5, 10)], 1, 9, []),  # it was not there at that time
    ],
)
def test_every_window_up_to_then_that_the_champion_has_not_seen(tmp_path, exported, trained, until, windows):
    made = [export(tmp_path, *window) for window in exported]
    champion(tmp_path, *made[:trained])
    assert retrain(tmp_path, until) == windows


def test_the_first_window_has_closed_and_lies_on_the_grid(tmp_path):
    made = plan.for_bootstrap(tmp_path, "r", SETTINGS, LOG, at(12.9))
    assert made.windows == [TrainingWindow(at(0), at(5))]
    assert plan.for_bootstrap(tmp_path, "r", SETTINGS, LOG, at(13)).windows == [TrainingWindow(at(5), at(10))]


def test_a_bootstrap_that_failed_halfway_goes_on_with_its_own_decisions(tmp_path):
    (tmp_path / "events").mkdir()
    name = segment_name(at(100), f"{plan.GENERATOR}-000000") + SEALED_SUFFIX
    (tmp_path / "events" / name).write_bytes(b"")
    assert plan.for_bootstrap(tmp_path, "r", SETTINGS, LOG, at(999)).windows == [TrainingWindow(at(100), at(105))]


def test_a_champion_needs_no_bootstrap(tmp_path):
    champion(tmp_path)
    made = plan.for_bootstrap(tmp_path, "r", SETTINGS, LOG, at(999))
    assert (made.windows, made.reason) == ([], "first is the champion already")


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(InputError, match="has no champion: run the bootstrap pipeline first"):
        retrain(tmp_path, 20)
    champion(tmp_path)
    with pytest.raises(InputError, match="has no window: run the bootstrap pipeline first"):
        retrain(tmp_path, 20)
    (tmp_path / "policies" / "first" / policies.CARD_NAME).unlink()
    with pytest.raises(InputError, match=r"policy.json is missing, but first is the champion"):
        retrain(tmp_path, 20)


def test_a_newer_revision_of_a_window_that_was_trained_on_is_work_to_do(tmp_path):
    first, second = export(tmp_path, 0, 5), export(tmp_path, 5, 10)
    champion(tmp_path, first, second)
    assert retrain(tmp_path, 12) == []
    export(tmp_path, 0, 5, revision=1)
    assert retrain(tmp_path, 12) == [(0, 5)]
    assert plan.exported_windows(tmp_path / "windows") == {first: 1, second: 0}
    store = tmp_path / "policies"
    card = policies.decode_card((store / "first" / policies.CARD_NAME).read_bytes(), "card")

    def trained_on(*seen: tuple[TrainingWindow, str, int]) -> None:
        parts = [TrainedWindow(window=one, split=split, records=1, revision=revision) for one, split, revision in seen]
        changed = msgspec.structs.replace(card, trained_on=parts)
        (store / "first" / policies.CARD_NAME).write_bytes(policies.encode_json(changed))

    trained_on((first, "train", 1), (first, "holdback", 0), (second, "train", 0))
    assert retrain(tmp_path, 12) == [(0, 5)]  # one split is that of the revision before
    trained_on((first, "train", 1), (first, "holdback", 1), (second, "train", 0))
    assert retrain(tmp_path, 12) == []

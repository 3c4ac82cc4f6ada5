"""A user is erased: nothing names the user any more, and every linear policy is as if the user had never come."""

import fcntl
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from beam_jobs.export_trajectories import export
from beam_jobs.generate_movielens import GeneratorSettings, generate
from beam_jobs.ingest_events import ingest
from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from beam_jobs.warehouses import EmbeddedWarehouse
from contracts import policies
from contracts.event_segments import OPEN_SUFFIX, sealed_segments
from contracts.items import Item
from contracts.windows import MANIFEST_NAME, TrainingWindow, WindowSettings, decode_manifest
from orchestration import cli, policy_store
from orchestration.places import Places
from predictor import policy as serving
from trainer import checkpoint, training

START = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = WindowSettings(reward_window_seconds=2.0, missing_reward="default")
USER = "user-0a1b2c3d-4e5f"
WINDOWS = [TrainingWindow(START + timedelta(seconds=5 * k), START + timedelta(seconds=5 * k + 5)) for k in range(2)]


def build_events(places: Places) -> None:
    """10 s of events, in which the most frequent user is called USER; and an unreadable event of that user."""
    viewers = MovieLens.build(load_ratings("sample"), num_actions=10, rank=4, reward_noise=0.5, seed=0)
    places.events.mkdir(parents=True)
    places.catalogue.write_bytes(msgspec.json.encode(viewers.catalogue))
    generate(
        viewers,
        GeneratorSettings(num_decisions=2000, start=START, window_seconds=10.0, decisions_per_shard=1000),
        places.events,
    )
    lines = [line for path in sealed_segments(places.events) for line in path.read_bytes().splitlines()]
    users = Counter(json.loads(line).get("user_id") for line in lines)
    users.pop(None)
    frequent = users.most_common(1)[0][0]
    for path in sealed_segments(places.events):
        text = path.read_text().replace(f'"user_id":"{frequent}"', f'"user_id":"{USER}"')
        path.write_text(text)
    with sealed_segments(places.events)[0].open("a") as file:
        file.write(json.dumps({"type": "decision", "user_id": USER, "action": "none"}) + "\n")


def derive(places: Places, windows: list[TrainingWindow] = WINDOWS) -> list[policies.PolicyCard]:
    """Everything that follows from the events: tables, windows, and a policy after each window."""
    viewers = msgspec.json.decode(places.catalogue.read_bytes(), type=list[Item])
    ingest(places.events, EmbeddedWarehouse(places.warehouse))
    cards: list[policies.PolicyCard] = []
    for window in windows:
        export(EmbeddedWarehouse(places.warehouse), places.windows, window, SETTINGS)
        card = training.train(
            training.Settings(
                windows=places.windows,
                policies=places.policies,
                num_actions=len(viewers),
                catalogue=viewers,
                parent=cards[-1].version if cards else None,
                hyperparameters={"half_life": 2.0, "arm_features": "hybrid"},
            )
        )
        cards.append(card)
    policy_store.roll_out(places.policies, cards[-1].version, "newest", START)
    return cards


@pytest.fixture(scope="module")
def derived(tmp_path_factory) -> tuple[Places, Places]:
    """A root with the user, and one whose log never had the user."""
    folder = tmp_path_factory.mktemp("erasure")
    with_user, without = Places(folder / "with"), Places(folder / "without")
    for places in (with_user, without):
        build_events(places)
    ids = {
        json.loads(line)["decision_id"]
        for path in sealed_segments(without.events)
        for line in path.read_bytes().splitlines()
        if USER.encode() in line and b"decision_id" in line
    }
    assert len(ids) >= 5
    for path in sealed_segments(without.events):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(
            b"".join(line for line in lines if USER.encode() not in line and not any(i.encode() in line for i in ids))
        )
    (folder / "ids.json").write_text(json.dumps(sorted(ids)))
    derive(with_user)
    derive(without)
    return with_user, without


def all_bytes(root: Path) -> bytes:
    """Every byte below a root, Parquet decompressed."""
    found = []
    for path in root.rglob("*"):
        if path.suffix == ".parquet":
            found.append(repr(pq.read_table(path, partitioning=None).to_pylist()).encode())
        elif path.is_file():
            found.append(path.read_bytes())
    return b"\n".join(found)


def records(places: Places, window: TrainingWindow) -> dict[str, list[bytes]]:
    folder = places.windows / window.folder
    manifest = decode_manifest((folder / MANIFEST_NAME).read_bytes(), "")
    return {
        file.name: [one.numpy() for one in tf.data.TFRecordDataset(str(folder / file.name))] for file in manifest.files
    }


def test_a_user_is_erased_as_if_they_had_never_come(derived, capsys):
    places, without = derived
    ids = json.loads((places.root.parent / "ids.json").read_text())
    before = all_bytes(places.root)
    assert USER.encode() in before and all(one.encode() in before for one in ids)
    cards = [policies.decode_card((places.policies / v / policies.CARD_NAME).read_bytes(), v) for v in policy_store.versions(places.policies)]  # fmt: skip

    assert cli.main(["erase", "--root", str(places.root), "--user", USER]) == 0
    said = capsys.readouterr().out
    assert "NOT erased" not in said and "1 dead_letters" in said
    assert said.count("taken out of its sums") == 2

    after = all_bytes(places.root)
    assert USER.encode() not in after
    assert [one for one in ids if one.encode() in after] == []
    # The windows are those of a log without the user, but for the names of policies that it never had.
    for window in WINDOWS:
        assert records(places, window) == records(without, window)
        one, other = (
            decode_manifest((root.windows / window.folder / MANIFEST_NAME).read_bytes(), "") for root in derived
        )
        assert one == other
    # The policies are those trained on such windows: to 1e-9 in the sums and in what serves.
    others = sorted(policy_store.versions(without.policies))
    assert len(cards) == len(others) == 2
    for card, other in zip(sorted(cards, key=lambda card: card.version), others, strict=True):
        mine, theirs = checkpoint.read(places.policies / card.version), checkpoint.read(without.policies / other)
        for name in ("a", "b", "n"):
            np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), rtol=0, atol=1e-9)
        served, wanted = serving.load(places.policies / card.version), serving.load(without.policies / other)
        arrays, expected = (np.load(root / policies.LINEAR_NAME) for root in (places.policies / card.version, without.policies / other))  # fmt: skip
        np.testing.assert_allclose(arrays["theta"], expected["theta"], rtol=0, atol=1e-6)  # float32
        assert [one.records for one in served.card.trained_on] == [one.records for one in wanted.card.trained_on]

    # Again: nothing is left to erase, and nothing is taken out twice.
    state = all_bytes(places.policies)
    assert cli.main(["erase", "--root", str(places.root), "--user", USER]) == 0
    assert "taken out" not in capsys.readouterr().out
    assert all_bytes(places.policies) == state
    # The log and the notes of what was ingested of it agree, so nothing is ingested again.
    assert ingest(places.events, EmbeddedWarehouse(places.warehouse)).events == 0


def test_a_network_is_left_and_said(tmp_path, capsys):
    places = Places(tmp_path / "root")
    build_events(places)
    derive(places, WINDOWS[:1])
    version = policy_store.versions(places.policies)[-1]
    path = places.policies / version / policies.CARD_NAME
    card = policies.decode_card(path.read_bytes(), version)
    path.write_bytes(policies.encode_json(msgspec.structs.replace(card, algorithm="neural_softmax")))
    (places.root / "notes.txt").write_text(f"called {USER} on Monday")
    assert cli.main(["erase", "--root", str(places.root), "--user", USER]) == 3
    said = capsys.readouterr().out
    assert f"NOT erased: {version}: neural_softmax is a network, from which nothing can be subtracted" in said
    assert "NOT erased: notes.txt names the user or a decision of the user" in said
    kept = (places.root / "erasures.jsonl").read_text()
    assert USER not in kept and json.loads(kept)["rows"]["decisions"] >= 5


def test_an_erasure_refuses_a_root_that_is_written_to(tmp_path, capsys):
    command = ["erase", "--root", str(tmp_path), "--user", USER]
    assert cli.main(command) == 2
    assert f"--root: {tmp_path} has no tables" in capsys.readouterr().err
    places = Places(tmp_path)
    for folder in (places.warehouse / "decisions", places.events, places.windows):
        folder.mkdir(parents=True)
    segment = places.events / f"20260101T000000.000000Z-w{OPEN_SUFFIX}"
    segment.touch()
    assert cli.main(command) == 2
    assert "is being written: stop the predictors and the loop first" in capsys.readouterr().err
    segment.unlink()
    with (places.windows / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cli.main(command) == 2
    assert "a window is being exported" in capsys.readouterr().err
    assert cli.main([*command[:-1], ""]) == 2

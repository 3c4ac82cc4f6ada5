from datetime import timedelta

import numpy as np

from beam_jobs import export_trajectories
from beam_jobs.warehouses import EmbeddedWarehouse
from contracts.windows import TrainingWindow
from orchestration import ingestion, policy_store
from orchestration.pipelines.plan import exported_windows
from orchestration.project import learner
from orchestration.project.learner import Learner
from predictor import policy as serving
from tests.orchestration.project.projects import WINDOW_SECONDS, make, past, traffic

LENGTH = timedelta(seconds=WINDOW_SECONDS)


def test_windows_that_have_closed_are_finished_in_order_and_quiet_ones_left_out(tmp_path, capsys):
    folder = make(tmp_path / "shop")
    start = past(120)
    traffic(folder, start)
    traffic(folder, start + 20 * LENGTH, count=500)
    until = Learner(folder).step(start)
    assert until > start + 50 * LENGTH
    assert [entry.window for entry in folder.journal()] == [
        TrainingWindow(start, start + LENGTH),
        TrainingWindow(start + 20 * LENGTH, start + 21 * LENGTH),
    ]
    *_, last = folder.journal()
    assert last.gate.promoted
    assert policy_store.champion(folder.policies).version == last.candidate
    assert "500 decisions" in capsys.readouterr().out
    assert folder.read_learner().complete_until > start + 21 * LENGTH


def test_a_window_that_a_killed_learner_left_is_finished_once(tmp_path):
    folder = make(tmp_path / "shop")
    start = past(60)
    traffic(folder, start)
    ingestion.ingest(folder)
    window = TrainingWindow(start, start + LENGTH)
    source = EmbeddedWarehouse(folder.warehouse)
    export_trajectories.export(source, folder.windows, window, folder.project().windows.record_settings)
    assert folder.journal() == []  # it was killed after the export
    again = Learner(folder)
    begin = again.step(again._begin())
    assert [entry.window for entry in folder.journal()] == list(exported_windows(folder.windows)) == [window]
    assert Learner(folder).step(begin) > begin
    assert len(folder.journal()) == 1


def test_windows_that_closed_meanwhile_become_one_unless_there_is_a_gap():
    start = past(0)
    windows = [TrainingWindow(start + k * LENGTH, start + (k + 1) * LENGTH) for k in (0, 1, 2, 3, 4, 7)]
    assert learner._joined(windows, 3) == [
        TrainingWindow(start, start + 3 * LENGTH),
        TrainingWindow(start + 3 * LENGTH, start + 5 * LENGTH),
        windows[-1],
    ]


def test_while_it_waits_it_says_how_far_it_has_come(tmp_path):
    folder = make(tmp_path / "shop")
    begin = past(0)
    Learner(folder).step(begin)
    state = folder.read_learner()
    assert state.waits_for == begin + LENGTH + timedelta(seconds=0.6)
    assert (state.held_by, state.overdue) == ("", False)


def test_a_project_without_a_policy_is_refused(tmp_path, capsys):
    folder = make(tmp_path / "shop")
    for path in folder.policies.glob("*.json*"):
        path.unlink()
    assert learner.main(["--project", str(folder.root)]) == 2
    assert "has no policy that serves" in capsys.readouterr().err


def test_its_line_says_what_became_of_a_window(tmp_path):
    folder = make(tmp_path / "shop")
    start = past(60)
    traffic(folder, start, count=400)
    Learner(folder).step(start)
    [entry] = folder.journal()
    text = learner.line(folder, entry)
    assert "400 decisions, " in text
    assert f"{entry.candidate} serves, {entry.gate.reason}" in text


def test_one_item_may_be_the_best_for_everyone(tmp_path):
    folder = make(tmp_path / "shop")
    start = past(60)
    traffic(folder, start, clicks=lambda who, item: 0.6 * (item == "b"))
    Learner(folder).step(start)
    [entry] = folder.journal()
    assert entry.gate.promoted, entry.gate.reason
    policy = serving.load(folder.policies / entry.candidate)
    probabilities = policy.probabilities(np.array([policy.encoder.encode({"who": who}) for who in "xyz"], np.float32))
    assert probabilities.argmax(axis=1).tolist() == [1, 1, 1]

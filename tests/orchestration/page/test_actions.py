"""What a person can do on the page, with a real predictor."""

import time

import msgspec
import pytest

from contracts.errors import InputError, OperationError
from contracts.event_segments import sealed_segments
from orchestration import policy_store
from orchestration.audit import guard
from orchestration.loop.truth import OfferedReward, SentReward, TruthReader
from orchestration.page.actions import Actions
from orchestration.page.sources import Sources
from tests import servers
from tests.orchestration.page.events import decision
from tests.orchestration.page.roots import HOSTILE, make


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The actions of a run whose predictor is up."""
    folder = make(tmp_path_factory.mktemp("actions") / "run")
    with servers.predictor(folder.policies, folder.events) as server:
        folder.write_running(msgspec.structs.replace(folder.read_running(), predictor=server.url))
        yield folder, Actions(Sources(folder.root))


def test_a_recommendation_is_logged_rewarded_followed_and_explained(served):
    folder, actions = served
    found = actions.recommend([0.1, 0.2, 0.3], "u1")
    assert found.item in HOSTILE and 0 < found.propensity <= 1 and found.policy_version == "v1"
    assert "--json" in found.curl and found.decision_id in found.curl_reward
    assert actions.reward(found.decision_id, 4.5) == {"accepted": 1}
    (followed,) = [one for one in actions.rewarded() if one.decision_id == found.decision_id]
    assert (followed.status, followed.reward, followed.item) == ("waiting", 4.5, found.item)
    for _ in range(200):
        if any(found.decision_id.encode() in path.read_bytes() for path in sealed_segments(folder.events)):
            break
        time.sleep(0.05)
    explained = actions.explain(found.decision_id)
    assert explained.decision.user_id == "u1"
    assert explained.replayed_propensity == explained.decision.propensity


def test_what_the_predictor_refuses_is_said_in_its_words(served):
    with pytest.raises(InputError, match=r"observation: must have 3 numbers, got 2"):
        served[1].recommend([0.1, 0.2], None)


def test_only_what_was_recommended_here_is_rewarded(served):
    with pytest.raises(InputError, match="one that was recommended on this page"):
        served[1].reward(decision(1).decision_id, 4.0)


def test_viewers_can_be_picked_and_made(served):
    actions = served[1]
    known = actions.viewers()
    assert known["items"] == HOSTILE and len(known["user_ids"]) > 100
    assert len(actions.viewer(known["user_ids"][3])["observation"]) == 3
    assert any(actions.make_viewer({0: 5.0, 3: 1.0})["observation"])


@pytest.mark.parametrize(
    "identity", ["", "x", "../../etc/passwd", "z" * 36, "01a22159-8671-7d04-8708-d5169de131dc", "f" * 36]
)
def test_a_decision_that_is_not_in_the_log_is_named(served, identity):
    with pytest.raises(InputError, match="decision_id: "):
        served[1].explain(identity)


def test_rolling_back_holding_and_releasing_are_in_the_history(tmp_path):
    folder = make(tmp_path / "run")
    actions = Actions(Sources(folder.root))
    assert actions.roll_back("reward fell") == {"serves": "v0"}
    assert policy_store.history(folder.policies)[-1].reason == "by hand: reward fell"
    with pytest.raises(InputError, match="no earlier champion"):
        actions.roll_back("again")
    assert actions.hold("a look") == {"held": True}
    with pytest.raises(InputError, match="is held already"):
        actions.hold("again")
    assert actions.release("done") == {"held": False}
    assert not guard.is_held(folder.root)


def test_without_a_predictor_nothing_is_recommended(tmp_path):
    actions = Actions(Sources(make(tmp_path / "run").root))
    with pytest.raises(OperationError, match="the predictor does not run"):
        actions.recommend([0.1, 0.2, 0.3], None)


def test_without_a_loop_there_are_no_viewers(tmp_path):
    with pytest.raises(InputError, match="viewers: a run of the loop has them"):
        Actions(Sources(tmp_path)).viewers()


def test_a_reward_is_written_down_as_every_viewer_does_and_late_ones_as_late(served):
    folder, actions = served
    reader = TruthReader(folder.truth)
    reader.read()
    found = [actions.recommend([0.1, 0.2, 0.3], None).decision_id for _ in range(2)]
    actions.reward(found[0], 4.0)
    time.sleep(folder.settings().reward_window_seconds + 0.2)
    actions.reward(found[1], 3.0)
    offered, sent, _, late = reader.read()
    assert isinstance(offered, OfferedReward) and isinstance(sent, SentReward)
    assert (sent.decision_id, sent.reward, sent.fault) == (found[0], 4.0, "")
    assert (late.decision_id, late.fault) == (found[1], "late")


def test_a_viewer_with_another_observation_is_not_that_viewer(served):
    actions = served[1]
    user = actions.viewers()["user_ids"][0]
    observation = actions.viewer(user)["observation"]
    assert f'"user_id":"{user}"' in actions.recommend(observation, str(user)).curl
    assert "user_id" not in actions.recommend([0.5, *observation[1:]], str(user)).curl
    assert '"user_id":"me"' in actions.recommend(observation, "me").curl

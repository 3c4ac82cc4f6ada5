"""Roll-out through the real SDK against the local Vertex AI, whose endpoint routes to real predictors."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from google.cloud.aiplatform.models import ModelRegistry

from contracts.errors import InputError
from contracts.policies import Evaluation, PolicyCard
from orchestration.cloud.place import Place
from orchestration.cloud.vertex import CHAMPION, PREVIOUS, Vertex, alias, describe, labels
from tests.linear_policies import write_policy
from tests.local_vertex.server import LocalVertex, local_vertex

INSTANCE = {"observation": [0.1, 0.2, 0.3]}


class Environment:
    def __init__(self, folder: Path, fake: LocalVertex, url: str) -> None:
        self.fake = fake
        self.store = folder / "bucket" / "policies"
        self.place = Place(
            project="films",
            location="europe-west1",
            endpoint="recommender",
            policies="gs://bucket/policies",
            image="europe-west1-docker.pkg.dev/films/recommender/predictor:1",
            topic="",
            machine_type="n1-standard-2",
            api_endpoint=url,
            events=str(folder / "events"),
        )
        self.vertex = Vertex(self.place)

    def policy(self, number: int) -> PolicyCard:
        return write_policy(self.store / f"lin_ucb-20260101T00000{number}.000000Z-abc", seed=number)

    def split(self) -> dict[str, int]:
        return {one.version: one.traffic for one in self.vertex.deployed()}

    def roles(self) -> dict[str, str]:
        """By the registry's aliases alone."""
        return {
            role: json.loads(model.version_description)["version"]
            for model in self.fake.models["recommender"].values()
            for role in (CHAMPION, PREVIOUS)
            if role in model.version_aliases
        }


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    with local_vertex(tmp_path) as (fake, url):
        yield Environment(tmp_path, fake, url)


def test_bootstrap_canary_promote_and_roll_back(environment):
    vertex = environment.vertex
    first, second = environment.policy(1), environment.policy(2)
    assert vertex.register(first, "first") == f"{first.version} is registered, as version 1"
    assert vertex.promote(first.version, "why not").startswith(f"{first.version} is the champion, in place of nothing")
    assert environment.split() == {first.version: 100}

    vertex.register(second, "better")
    assert vertex.canary(second.version, 0.1) == f"{second.version} is deployed and takes 10% of the traffic"
    assert environment.split() == {first.version: 90, second.version: 10}
    seen = Counter(vertex.predict([INSTANCE])[0]["policy_version"] for _ in range(400))
    # 400 draws of 10%: 40, give or take four standard errors of 6.
    assert 16 <= seen[second.version] <= 64
    assert seen.total() == 400

    vertex.promote(second.version, "why not")
    assert environment.split() == {second.version: 100, first.version: 0}  # one step back
    assert vertex.champion() == second.version
    assert {vertex.predict([INSTANCE])[0]["policy_version"] for _ in range(20)} == {second.version}
    vertex.roll_back("to see")
    assert environment.split() == {first.version: 100, second.version: 0}
    assert vertex.champion() == first.version
    reasons = [(past.version, past.reason) for past in vertex.history()]
    assert reasons == [(first.version, "why not"), (second.version, "why not"), (first.version, "to see")]


def test_once_is_as_good_as_twice(environment):
    vertex = environment.vertex
    first, second = environment.policy(1), environment.policy(2)
    for _ in range(2):
        vertex.register(first, "")
        vertex.promote(first.version, "why not")
    for _ in range(2):
        vertex.register(second, "")
        vertex.canary(second.version, 0.25)
    assert environment.split() == {first.version: 75, second.version: 25}
    assert len(environment.fake.models["recommender"]) == 2
    assert environment.fake.started == 2
    assert vertex.register(second, "") == f"{second.version} is registered already, as version 2"
    assert vertex.canary(second.version, 0.25) == f"{second.version} takes 25% of the traffic already"
    assert vertex.canary(second.version, 0.5) == f"{second.version} takes 50% of the traffic"
    assert vertex.end_canary() == f"{first.version} takes all the traffic; undeployed {second.version}"
    assert environment.split() == {first.version: 100}
    assert vertex.end_canary() == f"{first.version} takes all the traffic; nothing was idle"
    assert vertex.promote(first.version, "again") == f"{first.version} is the champion already"
    assert [past.version for past in vertex.history()] == [first.version]


def test_a_promotion_that_was_interrupted_is_taken_up(environment):
    """Moving an alias takes two calls: here each of them is the last one of a promotion, in turn."""
    vertex = environment.vertex
    first, second = environment.policy(1), environment.policy(2)
    for card in (first, second):
        vertex.register(card, "")
    vertex.promote(first.version, "first")
    for change in ("add_version_aliases", "remove_version_aliases"):
        for role in (PREVIOUS, CHAMPION):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ModelRegistry, change, _killed_before(getattr(ModelRegistry, change), role))
                with contextlib.suppress(KilledError):
                    vertex.promote(second.version, "second")
            assert environment.split()[second.version] == 100
            vertex.promote(second.version, "second")
            assert vertex.champion() == second.version
            assert environment.roles() == {CHAMPION: second.version, PREVIOUS: first.version}
            assert [past.version for past in vertex.history()][-2:] == [first.version, second.version]
            vertex.roll_back("again")
            assert vertex.champion() == first.version
            assert environment.split() == {first.version: 100, second.version: 0}


def test_the_way_back_is_known_when_its_alias_was_lost(environment):
    vertex = environment.vertex
    first, second = environment.policy(1), environment.policy(2)
    for card in (first, second):
        vertex.register(card, "")
        vertex.promote(card.version, "")
    for model in environment.fake.models["recommender"].values():
        for role in (CHAMPION, PREVIOUS):
            if role in model.version_aliases:
                model.version_aliases.remove(role)
    assert vertex.champion() == second.version
    assert vertex.roll_back("").startswith(f"{first.version} is the champion, in place of {second.version}")
    assert environment.roles() == {CHAMPION: first.version, PREVIOUS: second.version}


def test_of_two_promoted_at_a_time_one_serves_and_is_the_champion(environment):
    vertex = environment.vertex
    cards = [environment.policy(number) for number in range(3)]
    for card in cards:
        vertex.register(card, "")
    vertex.promote(cards[0].version, "first")
    with ThreadPoolExecutor(2) as threads:
        said = list(threads.map(lambda card: vertex.promote(card.version, "at once"), cards[1:]))
    (serving,) = [version for version, traffic in environment.split().items() if traffic]
    assert environment.split()[serving] == 100
    assert environment.roles()[CHAMPION] == vertex.champion() == serving
    assert serving in {card.version for card in cards[1:]}
    assert any(one.startswith(f"{serving} is the champion") for one in said)


class KilledError(Exception):
    pass


def _killed_before(change, role):
    def changed(self, aliases, version):
        if aliases == [role]:
            raise KilledError
        return change(self, aliases, version)

    return changed


def test_ten_retrains_leave_one_endpoint_and_two_deployed_models(environment):
    vertex = environment.vertex
    for number in range(10):
        card = environment.policy(number)
        vertex.register(card, "")
        if number:
            vertex.canary(card.version, 0.1)
        vertex.promote(card.version, "why not")
    assert list(environment.fake.endpoints) == ["recommender"]
    assert list(environment.fake.models) == ["recommender"]
    assert len(environment.fake.models["recommender"]) == 10
    assert list(environment.split().values()) == [100, 0]
    assert len(environment.fake.predictors) == 2


def test_what_the_registry_knows(environment):
    card = msgspec.structs.replace(
        environment.policy(1),
        parent="lin_ucb-20251231T000000.000000Z-def",
        evaluation=Evaluation(
            estimator="switch_dr", value=2.5, low=2.25, high=2.75, effective_sample_size=99, decisions=200
        ),
    )
    environment.vertex.register(card, "own next update")
    (model,) = environment.fake.models["recommender"].values()
    assert dict(model.labels) == labels(card)
    assert model.labels["estimate"] == "2-500"
    assert model.labels["parent"] == alias("lin_ucb-20251231T000000.000000Z-def")
    known = msgspec.json.decode(model.version_description)
    assert known == msgspec.json.decode(describe(card, "own next update"))
    assert (known["reason"], known["evaluation"]["low"]) == ("own next update", 2.25)
    reason = "Ada said: “100% better”, and more\nthan that"
    environment.vertex.promote(card.version, reason)
    after = msgspec.json.decode(model.version_description)
    (promotion,) = after.pop("promotions")
    assert (promotion["version"], promotion["reason"]) == (card.version, reason)
    assert after | {"promotions": []} == known
    assert dict(model.labels) == labels(card)


def test_wrong_requests_are_one_line(environment):
    vertex = environment.vertex
    with pytest.raises(InputError, match="endpoint recommender is gone: roll a policy out first"):
        vertex.predict([INSTANCE])
    with pytest.raises(InputError, match="has no version 'none': register it first"):
        vertex.canary("none", 0.1)
    with pytest.raises(InputError, match=r"share must be from 0.01 to 1, .* got 0.001"):
        vertex.canary("none", 0.001)
    with pytest.raises(InputError, match="has no earlier champion to go back to"):
        vertex.roll_back("to see")
    with pytest.raises(InputError, match="has no champion"):
        vertex.end_canary()
    card = environment.policy(1)
    vertex.register(card, "")
    vertex.promote(card.version, "why not")
    with pytest.raises(InputError, match=r"Vertex AI: 400 .*must have 3 numbers, got 1") as raised:
        vertex.predict([{"observation": [0.1]}])
    assert "\n" not in str(raised.value)


def test_a_policy_that_does_not_load_never_gets_traffic(environment):
    vertex = environment.vertex
    good, bad = environment.policy(1), environment.policy(2)
    vertex.register(good, "")
    vertex.promote(good.version, "why not")
    vertex.register(bad, "")
    (environment.store / bad.version / "linear.npz").unlink()
    with pytest.raises(InputError, match=r"Vertex AI: 400 .*did not become healthy: .*linear.npz"):
        vertex.canary(bad.version, 0.1)
    assert environment.split() == {good.version: 100}
    assert vertex.champion() == good.version

"""Roll-out through the real SDK against the local Vertex AI, whose endpoint routes to real predictors."""

import contextlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from google.cloud import aiplatform
from google.cloud.aiplatform.models import ModelRegistry

from contracts.errors import InputError
from orchestration.cloud.vertex_models import CHAMPION, PREVIOUS

INSTANCE = {"observation": [0.1, 0.2, 0.3]}


def test_bootstrap_canary_promote_and_roll_back(environment):
    endpoint, models = environment.endpoint, environment.models
    first, second = environment.policy(1), environment.policy(2)
    assert models.register(first, "first") == f"{first.version} is registered, as version 1"
    assert endpoint.promote(first.version, "why not").startswith(
        f"{first.version} is the champion, in place of nothing"
    )
    assert environment.split() == {first.version: 100}

    models.register(second, "better")
    assert endpoint.canary(second.version, 0.1) == f"{second.version} is deployed and takes 10% of the traffic"
    assert environment.split() == {first.version: 90, second.version: 10}
    seen = Counter(endpoint.predict([INSTANCE])[0]["policy_version"] for _ in range(400))
    # 400 draws of 10%: 40, give or take four standard errors of 6.
    assert 16 <= seen[second.version] <= 64
    assert seen.total() == 400

    endpoint.promote(second.version, "why not")
    assert environment.split() == {second.version: 100, first.version: 0}  # one step back
    assert endpoint.champion() == second.version
    assert {endpoint.predict([INSTANCE])[0]["policy_version"] for _ in range(20)} == {second.version}
    endpoint.roll_back("to see")
    assert environment.split() == {first.version: 100, second.version: 0}
    assert endpoint.champion() == first.version
    reasons = [(past.version, past.reason) for past in endpoint.history()]
    assert reasons == [(first.version, "why not"), (second.version, "why not"), (first.version, "to see")]


def test_a_promotion_that_leaves_a_share_to_the_version_before(environment):
    endpoint, models = environment.endpoint, environment.models
    cards = [environment.policy(number) for number in range(3)]
    first, second, third = (card.version for card in cards)
    for card in cards:
        models.register(card, "")
    endpoint.promote(first, "first")
    for _ in range(2):
        endpoint.promote(second, "on probation", (first, 0.1))
        assert environment.split() == {second: 90, first: 10}
    assert environment.roles() == {CHAMPION: second, PREVIOUS: first}
    assert endpoint.end_canary((first, 0.1)).startswith(f"{second} takes 90% of the traffic; ")
    assert environment.split() == {second: 90, first: 10}
    # The next update takes its place beside the same anchor, to which a roll-back goes.
    endpoint.promote(third, "on probation", (first, 0.5))
    assert {version: share for version, share in environment.split().items() if share} == {third: 50, first: 50}
    assert environment.roles() == {CHAMPION: third, PREVIOUS: first}
    assert endpoint.champion() == third
    endpoint.promote(third, "confirmed")
    assert environment.split() == {third: 100, first: 0}
    assert [past.version for past in endpoint.history()] == [first, second, third]
    endpoint.roll_back("to see")
    assert environment.split() == {first: 100, third: 0}


def test_the_sdk_asks_for_candidates_and_slates(environment, monkeypatch):
    """`Endpoint.predict` as the SDK has it: its JSON writes every number as a double, 3 as 3.0."""
    card = environment.policy(1)
    environment.models.register(card, "")
    environment.endpoint.promote(card.version, "first")
    bodies = []
    predict = environment.fake._predict

    def seen(match, query, body):
        bodies.append(body)
        return predict(match, query, body)

    monkeypatch.setattr(environment.fake, "_predict", seen)
    instance = INSTANCE | {"candidates": [1, 3, 4]}
    endpoint = aiplatform.Endpoint("recommender")
    (shown,) = endpoint.predict(instances=[instance], parameters={"slate_size": 2}).predictions
    ((sent,), parameters) = bodies[0]["instances"], bodies[0]["parameters"]
    assert [type(number) for number in (*sent["candidates"], parameters["slate_size"])] == [float] * 4
    places = [place["action"] for place in shown["slate"]]
    assert len(set(places)) == 2
    assert set(places) <= {1, 3, 4}
    assert places[0] == shown["action"]
    with pytest.raises(InputError, match=r"Vertex AI: 400 .*candidates"):
        environment.endpoint.predict([INSTANCE | {"candidates": [1.5]}])


def test_once_is_as_good_as_twice(environment):
    endpoint, models = environment.endpoint, environment.models
    first, second = environment.policy(1), environment.policy(2)
    for _ in range(2):
        models.register(first, "")
        endpoint.promote(first.version, "why not")
    for _ in range(2):
        models.register(second, "")
        endpoint.canary(second.version, 0.25)
    assert environment.split() == {first.version: 75, second.version: 25}
    assert len(environment.fake.models["recommender"]) == 2
    assert environment.fake.started == 2
    assert models.register(second, "") == f"{second.version} is registered already, as version 2"
    assert endpoint.canary(second.version, 0.25) == f"{second.version} takes 25% of the traffic already"
    assert endpoint.canary(second.version, 0.5) == f"{second.version} takes 50% of the traffic"
    assert endpoint.end_canary() == f"{first.version} takes all the traffic; undeployed {second.version}"
    assert environment.split() == {first.version: 100}
    assert endpoint.end_canary() == f"{first.version} takes all the traffic; nothing was idle"
    assert endpoint.promote(first.version, "again") == f"{first.version} is the champion already"
    assert [past.version for past in endpoint.history()] == [first.version]


def test_a_promotion_that_was_interrupted_is_taken_up(environment):
    """Moving an alias takes two calls: here each of them is the last one of a promotion, in turn."""
    endpoint, models = environment.endpoint, environment.models
    first, second = environment.policy(1), environment.policy(2)
    for card in (first, second):
        models.register(card, "")
    endpoint.promote(first.version, "first")
    for change in ("add_version_aliases", "remove_version_aliases"):
        for role in (PREVIOUS, CHAMPION):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ModelRegistry, change, _killed_before(getattr(ModelRegistry, change), role))
                with contextlib.suppress(KilledError):
                    endpoint.promote(second.version, "second")
            assert environment.split()[second.version] == 100
            endpoint.promote(second.version, "second")
            assert endpoint.champion() == second.version
            assert environment.roles() == {CHAMPION: second.version, PREVIOUS: first.version}
            assert [past.version for past in endpoint.history()][-2:] == [first.version, second.version]
            endpoint.roll_back("again")
            assert endpoint.champion() == first.version
            assert environment.split() == {first.version: 100, second.version: 0}


def test_the_way_back_is_known_when_its_alias_was_lost(environment):
    endpoint, models = environment.endpoint, environment.models
    first, second = environment.policy(1), environment.policy(2)
    for card in (first, second):
        models.register(card, "")
        endpoint.promote(card.version, "")
    for model in environment.fake.models["recommender"].values():
        for role in (CHAMPION, PREVIOUS):
            if role in model.version_aliases:
                model.version_aliases.remove(role)
    assert endpoint.champion() == second.version
    assert endpoint.roll_back("").startswith(f"{first.version} is the champion, in place of {second.version}")
    assert environment.roles() == {CHAMPION: first.version, PREVIOUS: second.version}


def test_of_two_promoted_at_a_time_one_serves_and_is_the_champion(environment):
    endpoint, models = environment.endpoint, environment.models
    cards = [environment.policy(number) for number in range(3)]
    for card in cards:
        models.register(card, "")
    endpoint.promote(cards[0].version, "first")
    with ThreadPoolExecutor(2) as threads:
        said = list(threads.map(lambda card: endpoint.promote(card.version, "at once"), cards[1:]))
    (serving,) = [version for version, traffic in environment.split().items() if traffic]
    assert environment.split()[serving] == 100
    assert environment.roles()[CHAMPION] == endpoint.champion() == serving
    assert serving in {card.version for card in cards[1:]}
    assert any(one.startswith(f"{serving} is the champion") for one in said)


def test_ten_retrains_leave_one_endpoint_and_two_deployed_models(environment):
    endpoint, models = environment.endpoint, environment.models
    for number in range(10):
        card = environment.policy(number)
        models.register(card, "")
        if number:
            endpoint.canary(card.version, 0.1)
        endpoint.promote(card.version, "why not")
    assert list(environment.fake.endpoints) == ["recommender"]
    assert list(environment.fake.models) == ["recommender"]
    assert len(environment.fake.models["recommender"]) == 10
    assert list(environment.split().values()) == [100, 0]
    assert len(environment.fake.predictors) == 2


def test_wrong_requests_are_one_line(environment):
    endpoint, models = environment.endpoint, environment.models
    with pytest.raises(InputError, match="endpoint recommender does not exist: roll a policy out first"):
        endpoint.predict([INSTANCE])
    with pytest.raises(InputError, match="has no version 'none': register it first"):
        endpoint.canary("none", 0.1)
    with pytest.raises(InputError, match=r"share: from 0.01 to 1, .* got 0.001"):
        endpoint.canary("none", 0.001)
    with pytest.raises(InputError, match="has no earlier champion to go back to"):
        endpoint.roll_back("to see")
    with pytest.raises(InputError, match="has no champion"):
        endpoint.end_canary()
    card = environment.policy(1)
    models.register(card, "")
    endpoint.promote(card.version, "why not")
    with pytest.raises(InputError, match=r"Vertex AI: 400 .*must have 3 numbers, got 1") as raised:
        endpoint.predict([{"observation": [0.1]}])
    assert "\n" not in str(raised.value)


def test_a_policy_that_does_not_load_never_gets_traffic(environment):
    endpoint, models = environment.endpoint, environment.models
    good, bad = environment.policy(1), environment.policy(2)
    models.register(good, "")
    endpoint.promote(good.version, "why not")
    models.register(bad, "")
    (environment.store / bad.version / "linear.npz").unlink()
    with pytest.raises(InputError, match=r"Vertex AI: 400 .*did not become healthy: .*linear.npz"):
        endpoint.canary(bad.version, 0.1)
    assert environment.split() == {good.version: 100}
    assert endpoint.champion() == good.version


class KilledError(Exception):
    pass


def _killed_before(change, role):
    def changed(self, aliases, version):
        if aliases == [role]:
            raise KilledError
        return change(self, aliases, version)

    return changed

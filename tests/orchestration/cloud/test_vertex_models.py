"""What the registry records of a policy."""

import msgspec
import pytest

from contracts.errors import InputError
from contracts.policies import Evaluation
from orchestration.cloud.vertex_models import alias, describe, labels


def test_what_the_registry_knows(environment):
    card = msgspec.structs.replace(
        environment.policy(1),
        parent="lin_ucb-20251231T000000.000000Z-def",
        evaluation=Evaluation(
            estimator="switch_dr", value=2.5, low=2.25, high=2.75, effective_sample_size=99, decisions=200
        ),
    )
    environment.models.register(card, "own next update")
    (model,) = environment.fake.models["recommender"].values()
    assert dict(model.labels) == labels(card)
    assert model.labels["estimate"] == "2-500"
    assert model.labels["parent"] == alias("lin_ucb-20251231T000000.000000Z-def")
    known = msgspec.json.decode(model.version_description)
    assert known == msgspec.json.decode(describe(card, "own next update"))
    assert (known["reason"], known["evaluation"]["low"]) == ("own next update", 2.25)
    reason = "Ada said: “100% better”, and more\nthan that"
    environment.endpoint.promote(card.version, reason)
    after = msgspec.json.decode(model.version_description)
    (promotion,) = after.pop("promotions")
    assert (promotion["version"], promotion["reason"]) == (card.version, reason)
    assert after | {"promotions": []} == known
    assert dict(model.labels) == labels(card)


def test_a_version_is_registered_once(environment):
    card = environment.policy(1)
    assert environment.models.register(card, "first") == f"{card.version} is registered, as version 1"
    assert environment.models.register(card, "again") == f"{card.version} is registered already, as version 1"
    assert environment.models.number(card.version) == "1"
    with pytest.raises(InputError, match="model recommender has no version 'none': register it first"):
        environment.models.number("none")


def test_a_version_that_something_else_registered_is_one_line(environment):
    environment.models.register(environment.policy(1), "first")
    (model,) = environment.fake.models["recommender"].values()
    model.version_description = "made by hand"
    with pytest.raises(InputError, match="version 1 of model recommender was not registered by this project"):
        environment.models.history()

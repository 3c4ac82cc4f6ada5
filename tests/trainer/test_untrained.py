import numpy as np
import pytest

from contracts.errors import InputError
from contracts.features import FeatureSpec, Number
from contracts.items import Item
from predictor import policy as serving
from trainer import untrained

SPEC = FeatureSpec(features=[Number(name="hour")])
CATALOGUE = [Item(action=k, item_id=f"i{k}") for k in range(3)]


def probabilities(folder, card):
    return serving.load(folder / card.version).probabilities(np.array([[1.0, 0.3], [1.0, -2.0]], np.float32))


def test_without_counts_every_item_is_as_likely_as_any_other(tmp_path):
    card = untrained.write(tmp_path, CATALOGUE, SPEC)
    assert card.version.startswith("uniform-")
    assert (card.trained_on, card.features, card.parent) == ([], SPEC, None)
    assert np.allclose(probabilities(tmp_path, card), 1 / 3)


def test_with_counts_an_item_is_chosen_in_proportion_to_its_count_plus_one_in_every_context(tmp_path):
    card = untrained.write(tmp_path, CATALOGUE, SPEC, [0, 1, 6])
    assert card.version.startswith("popularity-")
    assert np.allclose(probabilities(tmp_path, card), [[0.1, 0.2, 0.7]] * 2, atol=1e-6)


def test_the_same_inputs_give_the_same_policy_and_others_another(tmp_path):
    first = untrained.write(tmp_path, CATALOGUE, SPEC)
    assert untrained.write(tmp_path, CATALOGUE, SPEC) == first
    assert untrained.write(tmp_path, CATALOGUE[:2], SPEC).version != first.version


def test_what_cannot_be_served_is_refused(tmp_path):
    with pytest.raises(InputError, match="catalogue: must have an active item"):
        untrained.write(tmp_path, [], SPEC)
    with pytest.raises(InputError, match="needs the constant, got constant = false"):
        untrained.write(tmp_path, CATALOGUE, FeatureSpec(constant=False, features=SPEC.features), [1, 2, 3])
    assert list(tmp_path.iterdir()) == []

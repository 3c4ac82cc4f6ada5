import re
from datetime import UTC, datetime

import numpy as np
import pytest

from contracts.errors import InputError
from contracts.features import FeatureSpec, Number
from orchestration import cli, evaluation
from orchestration.places import Places
from tests.orchestration.test_gate import THETA, D, Shop, logged
from trainer import untrained

STARTS = [datetime(2026, 1, 1, 0, 0, 5 * number, tzinfo=UTC) for number in range(4)]


@pytest.fixture
def shop(tmp_path):
    made = Shop(tmp_path / "policies", tmp_path / "windows")
    rng = np.random.default_rng(0)
    for number in range(2):
        made.window(number, logged(rng, 400), logged(rng, 100))
    return made


def test_a_policy_is_judged_on_what_it_has_not_learned_from(shop, tmp_path, capsys):
    first = shop.train(None)
    result = evaluation.judge(Places(tmp_path), first.version, None)
    assert result.evaluation.decisions == 100  # the holdback of the newest window
    x = np.random.default_rng(9).normal(size=(100_000, D))
    truth = (x @ THETA.T).max(axis=1).mean()  # it has learned whom to offer what
    assert result.evaluation.low < truth < result.evaluation.high
    rng = np.random.default_rng(5)
    shop.window(2, logged(rng, 2000), logged(rng, 500))
    later = evaluation.judge(Places(tmp_path), first.version, None, [STARTS[2]])
    assert later.evaluation.decisions == 2500
    assert later.evaluation.low < truth < later.evaluation.high
    assert later.evaluation.high - later.evaluation.low < result.evaluation.high - result.evaluation.low
    assert cli.main(["evaluate", first.version, "--root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"{first.version}: reward per decision " in said
    assert " of 2600 decisions; reliable" in said


def test_two_policies_are_compared(shop, tmp_path, capsys):
    first = shop.train(None)
    wrong = shop.fake(-THETA, first, "wrong")
    rng = np.random.default_rng(5)
    shop.window(2, logged(rng, 2000), logged(rng, 500))
    result = evaluation.judge(Places(tmp_path), wrong, first.version, [STARTS[2]])
    assert result.verdict == "worse"
    assert result.gain_high < 0
    assert evaluation.judge(Places(tmp_path), first.version, first.version).gain == pytest.approx(0)
    assert cli.main(["evaluate", wrong, "--against", first.version, "--root", str(tmp_path)]) == 0
    assert f"against {first.version}: worse: gain -" in capsys.readouterr().out


def test_what_cannot_be_judged_is_named(shop, tmp_path):
    places = Places(tmp_path)
    first = shop.train(None)
    with pytest.raises(InputError, match=re.escape("neither policy was trained on expected, got none")):
        evaluation.judge(places, first.version, None, [STARTS[0]])
    with pytest.raises(InputError, match=r"the start of a window in .* expected, got 2026-01-01T00:00:15"):
        evaluation.judge(places, first.version, None, [STARTS[3]])
    with pytest.raises(InputError, match="no-such"):
        evaluation.judge(places, "no-such", None)
    spec = FeatureSpec(constant=False, features=[Number(name=name) for name in "abcd"])
    untaught = untrained.write(shop.store, first.catalogue, spec)
    with pytest.raises(InputError, match="has learned nothing, so it has no model to judge by"):
        evaluation.judge(places, first.version, untaught.version)

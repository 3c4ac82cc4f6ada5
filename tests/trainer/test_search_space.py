import itertools
import subprocess
import sys

import pytest

from contracts.command_line import flag_name
from contracts.errors import InputError
from contracts.items import Item
from trainer import agents, arms, task
from trainer.search_space import Choices, FloatRange, search_space


def extremes(parameter):
    match parameter:
        case FloatRange():
            assert 0 < parameter.low < parameter.high
            return parameter.low, parameter.high
        case Choices():
            assert len({type(value) for value in parameter.values}) == 1
            return parameter.values


@pytest.mark.parametrize("algorithm", sorted(agents.DEFAULTS))
@pytest.mark.parametrize("has_arm_features", [False, True])
def test_every_value_is_one_that_the_algorithm_accepts(algorithm, has_arm_features):
    space = search_space(algorithm, has_arm_features)
    names = [parameter.name for parameter in space]
    assert names and len(names) == len(set(names))
    for values in itertools.product(*map(extremes, space)):
        agents.complete(algorithm, dict(zip(names, values, strict=True)))


@pytest.mark.parametrize("algorithm", sorted(agents.DEFAULTS))
def test_every_parameter_is_a_flag_of_the_trainer(algorithm):
    arguments = ["--windows", "w", "--policies", "p", "--num-actions", "3", "--catalogue", "c"]
    for parameter in search_space(algorithm, True):
        for value in extremes(parameter):
            parsed = task.build_parser().parse_args([*arguments, flag_name(parameter.name), str(value)])
            assert getattr(parsed, parameter.name) == value


@pytest.mark.parametrize("algorithm", sorted(agents.DEFAULTS))
def test_a_condition_names_an_earlier_parameter_and_one_of_its_values(algorithm):
    space = search_space(algorithm, True)
    for index, parameter in enumerate(space):
        if parameter.condition is not None:
            earlier = {other.name: other for other in space[:index]}
            assert parameter.condition.value in earlier[parameter.condition.name].values


def test_linear_models_that_share_evidence_are_tried_only_where_arms_are_described():
    described = {parameter.name for parameter in search_space("lin_ucb", True)}
    assert described - {parameter.name for parameter in search_space("lin_ucb", False)} == {
        "arm_features",
        "arm_tikhonov",
    }


@pytest.mark.parametrize(
    ("facts", "expected"), [({}, False), ({"year": 1999.0}, True), ({"genres": ["Drama"]}, True), ({"url": "u"}, False)]
)
def test_arms_are_described_by_anything_but_their_name(facts, expected):
    assert arms.has_features([Item(action=0, item_id="1", attributes={"title": "One"} | facts)]) is expected


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(InputError, match=r"algorithm must be one of .*, got 'magic'"):
        search_space("magic", True)


def test_it_imports_without_optuna_and_tensorflow():
    program = (
        "import sys, trainer.search_space;"
        " print([name for name in ('optuna', 'tensorflow', 'tf_agents', 'apache_beam') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"

"""The study as the service's own messages."""

import pytest
from google.cloud.aiplatform_v1 import types

from orchestration.cloud.study import study_parameters
from trainer.agents import DEFAULTS
from trainer.search_space import search_space


def specs(algorithm: str, has_arm_features: bool) -> dict[str, types.StudySpec.ParameterSpec]:
    made = [types.StudySpec.ParameterSpec(one) for one in study_parameters(search_space(algorithm, has_arm_features))]
    return {one.parameter_id: one for one in made}


def test_linear_algorithms_try_the_arms_ridge_only_with_hybrid_features():
    found = specs("lin_ucb", has_arm_features=True)
    assert list(found) == ["tikhonov", "half-life", "arm-features"]
    assert list(found["half-life"].discrete_value_spec.values) == [0, 4, 16]
    (nested,) = found["arm-features"].conditional_parameter_specs
    assert list(nested.parent_categorical_values.values) == ["hybrid"]
    assert nested.parameter_spec.parameter_id == "arm-tikhonov"
    assert list(specs("lin_ucb", has_arm_features=False)) == ["tikhonov", "half-life"]


def test_neural_algorithms_try_no_half_life():
    found = specs("neural_boltzmann", has_arm_features=True)
    assert list(found) == ["layers", "learning-rate", "batch-size"]
    assert "64,64" in found["layers"].categorical_value_spec.values
    rate = found["learning-rate"]
    assert (rate.double_value_spec.min_value, rate.scale_type.name) == (3e-4, "UNIT_LOG_SCALE")


@pytest.mark.parametrize("algorithm", sorted(DEFAULTS))
def test_every_parameter_is_a_flag_of_a_hyperparameter(algorithm):
    for has_arm_features in (True, False):
        for name in specs(algorithm, has_arm_features):
            assert name.replace("-", "_") in DEFAULTS[algorithm]

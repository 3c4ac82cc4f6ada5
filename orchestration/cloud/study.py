"""A tuning study of Vertex AI, made from the trainer's search space."""

from collections.abc import Sequence
from typing import Any

from google.cloud.aiplatform import hyperparameter_tuning as tuning
from google_cloud_pipeline_components.v1.hyperparameter_tuning_job import serialize_parameters

from contracts.command_line import flag_name
from trainer.search_space import Choices, FloatRange, Parameter


def study_parameters(space: Sequence[Parameter]) -> list[dict[str, Any]]:
    """The parameters of a study, as Vertex AI's `ParameterSpec` messages in dictionaries.

    A parameter's id is the trainer's flag without its hyphens, since a trial gets it as a flag. A parameter with a
    condition is nested in the one that its condition names, which comes before it in `space`.
    """
    nested: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    for parameter in reversed(space):
        spec = _spec(parameter, nested.get(parameter.name))
        siblings = nested.setdefault(parameter.condition.name, {}) if parameter.condition else top
        siblings[flag_name(parameter.name).removeprefix("--")] = spec
    serialized: list[dict[str, Any]] = serialize_parameters(dict(reversed(top.items())))
    return serialized


def _spec(parameter: Parameter, nested: dict[str, Any] | None) -> Any:
    shared: dict[str, Any] = {
        "conditional_parameter_spec": nested,
        "parent_values": [parameter.condition.value] if parameter.condition else None,
    }
    match parameter:
        case FloatRange():
            scale = "log" if parameter.log else "linear"
            return tuning.DoubleParameterSpec(min=parameter.low, max=parameter.high, scale=scale, **shared)
        case Choices() if isinstance(parameter.values[0], str):
            return tuning.CategoricalParameterSpec(values=parameter.values, **shared)
        case Choices():
            return tuning.DiscreteParameterSpec(values=parameter.values, scale=None, **shared)

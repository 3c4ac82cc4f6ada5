"""The pipelines' parameters as a person sets them: flat names, in a configuration's TOML file or by `--set NAME=VALUE`.

A pipeline takes groups of settings as structs, which KFP passes as dictionaries. A parameter of a group is a field of
its struct, and the struct declares its type, default and bounds:

    windows      orchestration.pipelines.plan.WindowGrid, on contracts.windows.WindowSettings
    generated    orchestration.pipelines.plan.GeneratedLog
    exploration  contracts.policies.Exploration; its `strategy` is the parameter `exploration`
    canary       orchestration.pipelines.canary.Canary; its own fields are parameters with the prefix `canary_`, those of
                 orchestration.watch.Caution have none
    budget       TuningBudget
"""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from contracts.command_line import build, parse_time
from contracts.errors import InputError
from contracts.policies import Exploration
from orchestration.cloud.configuration import Configuration
from orchestration.pipelines.canary import Canary
from orchestration.pipelines.plan import GeneratedLog, WindowGrid
from orchestration.watch import Caution


class TuningBudget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The size of a search for hyperparameters."""

    trials: Annotated[int, Meta(ge=1, description="how many hyperparameters to try")] = 20
    seed: Annotated[int, Meta(ge=0, description="of the search; a study on Vertex AI takes none")] = 0


GROUPS: dict[str, type[msgspec.Struct]] = {
    "windows": WindowGrid,
    "generated": GeneratedLog,
    "exploration": Exploration,
    "canary": Canary,
    "budget": TuningBudget,
}
DEFAULTS: dict[str, dict[str, Any]] = {name: msgspec.to_builtins(group()) for name, group in GROUPS.items()}
_TYPES: dict[str, type] = {"String": str, "Dict": dict}  # of parameters that are in no group


class Parameter(NamedTuple):
    """One parameter of a pipeline, by its flat name."""

    kind: type | None  # None: a field of a group, whose struct declares its type
    required: bool


class _Given(NamedTuple):
    where: str  # it was set
    value: Any


def flat_name(group: str, field: str) -> str:
    """The name by which a person sets the field of a group."""
    if group == "exploration" and field == "strategy":
        return group
    return f"canary_{field}" if group == "canary" and field not in Caution.__struct_fields__ else field


def signature(pipeline: Any) -> dict[str, Parameter]:
    """The parameters of a pipeline by their flat names."""
    found: dict[str, Parameter] = {}
    for name, definition in pipeline.component_spec.inputs.items():
        if name in GROUPS:
            found |= {flat_name(name, field): Parameter(None, False) for field in GROUPS[name].__struct_fields__}
        else:
            found[name] = Parameter(_TYPES[definition.type], not definition.optional)
    return found


def values(pipeline: Any, configuration: Configuration, given: Mapping[str, str] = {}) -> dict[str, Any]:
    """The values with which an environment runs a pipeline, by the names of its KFP parameters.

    Args:
      pipeline: a KFP pipeline of `orchestration.pipelines.definitions`.
      configuration: of the environment.
      given: parameters as text, which take precedence over the configuration's.

    Raises InputError for a parameter that the pipeline does not have, that is missing, or whose value has another type or
    is out of bounds.
    """
    known = signature(pipeline)
    # In the cloud, the pipeline's KFP name begins with the environment's; its function's name does not.
    found = _collected(pipeline.pipeline_func.__name__, known, configuration, given)
    made: dict[str, Any] = {}
    for name in pipeline.component_spec.inputs:
        if name in GROUPS:
            fields = {field: flat_name(name, field) for field in GROUPS[name].__struct_fields__}
            made[name] = _group(name, {field: found[flat] for field, flat in fields.items() if flat in found})
        elif name in found:
            made[name] = _plain(found[name], known[name].kind)
    if made.get("until"):
        parse_time(made["until"], found["until"].where)
    return made


def _collected(
    pipeline: str, known: dict[str, Parameter], configuration: Configuration, given: Mapping[str, str]
) -> dict[str, _Given]:
    """What was set, by flat name; later sources replace earlier ones."""
    where = f"{configuration.name}: {pipeline}"
    found = {key: _Given(f"{where}.{key}", value) for key, value in configuration.shared.items() if key in known}
    own = {key: _Given(f"{where}.{key}", value) for key, value in configuration.own.get(pipeline, {}).items()}
    flags = {key: _Given(f"--set {key}", text) for key, text in given.items()}
    for key, setting in (own | flags).items():
        if key not in known:
            raise InputError(f"{setting.where}: {pipeline} has no such parameter; it has: {', '.join(known)}")
    for key, setting in flags.items():
        if (kind := known[key].kind) is not None:
            flags[key] = setting._replace(value=_parse(setting, kind))
    found |= own | flags
    if configuration.cloud is not None and "root" in known:
        found.setdefault("root", _Given(f"{where}.root", configuration.cloud.root))
    for key, parameter in known.items():
        if parameter.required and key not in found:
            raise InputError(f"{where}.{key} is missing: {pipeline} requires it")
    return found


def _group(name: str, found: dict[str, _Given]) -> dict[str, Any]:
    set_values = {field: one.value for field, one in found.items()}
    settings = build(GROUPS[name], set_values, lambda field: found[field].where if field in found else field)
    made: dict[str, Any] = msgspec.to_builtins(settings)
    return made


def _plain(setting: _Given, kind: type | None) -> Any:
    assert kind is not None
    if not isinstance(setting.value, kind):
        raise InputError(f"{setting.where}: must be of type {kind.__name__}, got {setting.value!r}")
    return setting.value


def _parse(setting: _Given, kind: type) -> Any:
    if kind is str:
        return setting.value
    try:
        return msgspec.json.decode(setting.value, type=kind)
    except msgspec.DecodeError:
        raise InputError(f"{setting.where}: must be JSON of type {kind.__name__}, got {setting.value!r}") from None

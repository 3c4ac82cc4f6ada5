"""The Vertex AI Model Registry of one environment: each policy is a version of the environment's one parent model.

Each version has its own alias. Two more aliases move: `champion`, the version that serves, and `previous`, the one to go
back to. A version's description records why and when it became the champion, beside what else is known of the policy;
labels take neither spaces nor capitals.
"""

import re
from datetime import datetime
from typing import Any

import msgspec
from google.api_core import exceptions
from google.cloud import aiplatform
from google.cloud.aiplatform_v1 import types

from contracts.errors import InputError, OperationError
from contracts.event_segments import compact_time
from contracts.policies import Evaluation, PolicyCard
from orchestration.cloud.target import VertexTarget, decode_target
from orchestration.cloud.vertex import CHANGED_MEANWHILE, connect, resource_id, service_errors

CHAMPION = "champion"
PREVIOUS = "previous"
PORT = 8080
MAX_PROMOTIONS = 20  # per version: a description is limited in size; the audit log has all of them
ALIAS_ATTEMPTS = 5  # to move an alias while other clients move it


class Promotion(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """When a version became the champion, and why."""

    promoted_at: datetime
    version: str
    reason: str


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What the registry records of a version beside its labels, as JSON in the version's description."""

    version: str
    parent: str | None
    reason: str  # the gate's
    evaluation: Evaluation | None
    windows: list[tuple[datetime, datetime, str, int]]  # the newest ones: start, end, split, records
    promotions: list[Promotion] = []


def models_of(vertex: str) -> "VertexModels":
    """The registry of the environment whose `VertexTarget` is `vertex`, as JSON."""
    return VertexModels(decode_target(vertex))


class VertexModels:
    """The registered policies of one environment. Repeating a call changes nothing more."""

    def __init__(self, target: VertexTarget) -> None:
        self._target = target
        connect(target)

    def register(self, card: PolicyCard, reason: str) -> str:
        """Registers a policy as a version of the parent model. Returns a sentence about what it did."""
        with service_errors():
            if (number := self._aliases().get(alias(card.version))) is not None:
                return f"{card.version} is registered already, as version {number}"
            parent = self._model()
            model = aiplatform.Model.upload(
                display_name=self._target.name,
                model_id=None if parent else resource_id(self._target.name),
                parent_model=parent.resource_name if parent else None,
                is_default_version=parent is None,
                version_aliases=[alias(card.version)],
                version_description=describe(card, reason),
                labels=labels(card),
                artifact_uri=f"{self._target.policies}/{card.version}",
                serving_container_image_uri=self._target.image,
                serving_container_args=[
                    # Vertex AI's own copy (AIP_STORAGE_URI) is in a bucket that the predictor's account may not read.
                    f"--policy={self._target.policies}/{card.version}",
                    f"--events={self._target.events}",
                    *([f"--topic={self._target.topic}"] if self._target.topic else []),
                ],
                serving_container_predict_route="/predict",
                serving_container_health_route="/health",
                serving_container_ports=[PORT],
                sync=True,
            )
            return f"{card.version} is registered, as version {model.version_id}"

    def history(self) -> list[Promotion]:
        """Every promotion, oldest first."""
        with service_errors():
            return sorted(one for info in self._versions() for one in _described(info).promotions)

    def note(self, promotion: Promotion) -> None:
        """Adds a promotion to the description of its version."""
        number = self._aliases()[alias(promotion.version)]
        (known,) = [_described(info) for info in self._versions() if info.version_id == number]
        promotions = [*known.promotions, promotion][-MAX_PROMOTIONS:]
        text = msgspec.json.encode(msgspec.structs.replace(known, promotions=promotions)).decode()
        # The name decides whether a version or its parent is updated; the SDK's own `update_version` leaves that open.
        model = aiplatform.Model(resource_id(self._target.name), version=number)
        update = types.Model(name=model.versioned_resource_name, version_description=text)
        model.api_client.update_model(model=update, update_mask={"paths": ["version_description"]})

    def move(self, name: str, version: str) -> None:
        """Moves the alias `name` to a registered policy. Raises OperationError if other clients keep moving it."""
        model = self._model()
        assert model is not None
        for _ in range(ALIAS_ATTEMPTS):
            by_alias = self._aliases()
            number = by_alias[alias(version)]
            if by_alias.get(name) == number:
                return
            try:
                if name in by_alias:
                    model.versioning_registry.remove_version_aliases([name], by_alias[name])
                model.versioning_registry.add_version_aliases([name], number)
            except CHANGED_MEANWHILE:  # another client moves it too
                continue
        raise OperationError(f"model {self._target.name}: alias {name!r} could not be moved to {version}")

    def roles(self) -> dict[str, str]:
        """The policy versions by role, `champion` and `previous`; a role that no version has is left out.

        Moving an alias takes two calls. If the process dies between them, no version has the alias; the history then
        decides.
        """
        registered = self._versions()
        found = {
            role: _described(info).version
            for info in registered
            for role in (CHAMPION, PREVIOUS)
            if role in info.version_aliases
        }
        served = [past.version for past in sorted(one for info in registered for one in _described(info).promotions)]
        if served and CHAMPION not in found:
            found[CHAMPION] = served[-1]
        before = [version for version in served if version != found.get(CHAMPION)]
        if before and PREVIOUS not in found:
            found[PREVIOUS] = before[-1]
        return found

    def number(self, version: str) -> str:
        """The registry's version number of a policy. Raises InputError if it is not registered."""
        number = self._aliases().get(alias(version))
        if number is None:
            raise InputError(f"model {self._target.name} has no version {version!r}: register it first")
        return number

    def _model(self) -> aiplatform.Model | None:
        try:
            return aiplatform.Model(resource_id(self._target.name))
        except exceptions.NotFound:
            return None

    def _versions(self) -> list[Any]:
        model = self._model()
        return list(model.versioning_registry.list_versions()) if model else []

    def _aliases(self) -> dict[str, str]:
        """The registry's version numbers, by alias."""
        return {name: info.version_id for info in self._versions() for name in info.version_aliases}


def alias(version: str) -> str:
    """A policy version in the form of Vertex AI's version aliases: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9-]", "-", version.lower())


def labels(card: PolicyCard) -> dict[str, str]:
    """The labels of a policy in the registry, by which its lists can be filtered."""
    newest = max((trained.window.start for trained in card.trained_on), default=None)
    found = {
        "policy": alias(card.version),
        "parent": alias(card.parent) if card.parent else "none",
        "algorithm": alias(card.algorithm),
        "windows": str(len({trained.window for trained in card.trained_on})),
        "newest_window": alias(compact_time(newest)) if newest else "none",
        "estimate": alias(f"{card.evaluation.value:.3f}") if card.evaluation else "none",
    }
    return {name: value[:63] for name, value in found.items()}


def describe(card: PolicyCard, reason: str) -> str:
    """The `Description` of a policy that was never promoted, as JSON."""
    known = Description(
        version=card.version,
        parent=card.parent,
        reason=reason,
        evaluation=card.evaluation,
        windows=[
            (trained.window.start, trained.window.end, trained.split, trained.records)
            for trained in card.trained_on[-20:]
        ],
    )
    return msgspec.json.encode(known).decode()


def _described(info: Any) -> Description:
    try:
        return msgspec.json.decode(info.version_description, type=Description)
    except msgspec.DecodeError as error:
        raise InputError(
            f"version {info.version_id} of model {info.model_display_name} was not registered by this project: its description: {error}"
        ) from None

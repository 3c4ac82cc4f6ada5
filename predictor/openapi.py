"""The OpenAPI document: the schemas that requests are decoded by, narrowed to the policy that serves, with examples."""

from typing import Any, assert_never

import msgspec
from fastapi.responses import PlainTextResponse

from contracts.features import Category, FeatureSpec, Hashed, Number
from contracts.policies import PolicyCard
from predictor.messages import (
    PredictRequest,
    PredictResponse,
    Refusal,
    RewardsRequest,
    RewardsResponse,
    StatusesRequest,
    StatusesResponse,
)

_REF = "#/components/schemas/{name}"
_ID = "01a20375-ec4c-785b-98a2-17b9d72932ef"
_PREDICTION = {
    "decision_id": _ID,
    "action": 24,
    "propensity": 0.9802,
    "policy_version": "20261122T130508Z",
    "item_id": "286",
    "title": "English Patient, The (1996)",
}


def predict_route() -> dict[str, Any]:
    """Arguments of the predict route."""
    instance = {"observation": [0.0], "user_id": "u17", "candidates": []}
    request = {
        "one": {"value": {"instances": [instance]}},
        "slate": {"summary": "three items", "value": {"instances": [instance], "parameters": {"slate_size": 3}}},
    }
    return _route(
        "Choose an action for each instance",
        "Predict",
        PredictRequest,
        request,
        {200: (PredictResponse, {"predictions": [_PREDICTION]})},
        (400, 401, 403, 408, 413, 415, 429, 503),
    )


def rewards_route() -> dict[str, Any]:
    """Arguments of the rewards route."""
    rewards = [{"decision_id": _ID, "reward": 4.5, "occurred_at": "2026-11-22T13:05:10.250Z"}]
    return _route(
        "Send the rewards of decisions",
        "Rewards",
        RewardsRequest,
        {"one": {"value": {"rewards": rewards}}},
        {202: (RewardsResponse, {"accepted": 1})},
        (400, 401, 403, 408, 413, 415, 429),
    )


def activate_route() -> dict[str, Any]:
    """Arguments of the activate route."""
    return _statuses_route("Say that deferred decisions were shown, so they count", "Activate")


def cancel_route() -> dict[str, Any]:
    """Arguments of the cancel route."""
    return _statuses_route("Say that decisions must not count", "Cancel")


def _statuses_route(summary: str, operation: str) -> dict[str, Any]:
    return _route(
        summary,
        operation,
        StatusesRequest,
        {"one": {"value": {"decision_ids": [_ID]}}},
        {202: (StatusesResponse, {"accepted": 1})},
        (400, 401, 403, 408, 413, 415, 429),
    )


def health_route() -> dict[str, Any]:
    """Arguments of the health route."""
    content = {"content": {"application/json": {"schema": {"type": "object"}}}}
    responses = {200: {"description": "A policy serves.", **content}, 503: {"description": "Not yet.", **content}}
    summary = "Which policy serves since when, and what became of the events"
    return {"summary": summary, "operation_id": "Health", "response_model": None, "responses": responses}


def metrics_route() -> dict[str, Any]:
    """Arguments of /metrics."""
    content = {"content": {"text/plain": {"schema": {"type": "string"}}}}
    return {
        "summary": "Counters for Prometheus",
        "operation_id": "Metrics",
        "response_class": PlainTextResponse,
        "responses": {200: {"description": "In Prometheus' text format.", **content}},
    }


def complete(document: dict[str, Any], card: PolicyCard | None) -> dict[str, Any]:
    """`document` with the schemas of all bodies; a card narrows them to its observations and arms."""
    types = (
        PredictRequest,
        PredictResponse,
        RewardsRequest,
        RewardsResponse,
        StatusesRequest,
        StatusesResponse,
        Refusal,
    )
    _, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    if card is not None:
        d, k = card.observation_dim, card.num_actions
        instance = schemas["Instance"]["properties"]
        instance["observation"] |= {"minItems": d, "maxItems": d}
        instance["candidates"] |= {"maxItems": k, "uniqueItems": True}
        for kind in instance["candidates"]["items"]["anyOf"]:
            if kind["type"] == "integer":
                kind["maximum"] = k - 1
        if card.features is None:
            del instance["context"]
            schemas["Instance"]["required"] = ["observation"]
        else:
            instance["context"] = _context_schema(card.features)
        schemas["Parameters"]["properties"]["slate_size"]["maximum"] = k
        document["paths"] = _with_length(document["paths"], d)
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
    return document


def _context_schema(spec: FeatureSpec) -> dict[str, Any]:
    """The schema of the named features that a policy takes."""
    properties: dict[str, Any] = {}
    for feature in spec.features:
        match feature:
            case Number():
                properties[feature.name] = {"type": "number"}
            case Category(unseen="refuse"):
                properties[feature.name] = {"enum": feature.values}
            case Category() | Hashed():
                properties[feature.name] = {"type": ["string", "boolean", "integer"], "maxLength": 128}
            case _:
                assert_never(feature)
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        "description": "The observation by names, in its place.",
    }


def _with_length(value: Any, observation_dim: int) -> Any:
    """`value` with example observations of the right length."""
    if isinstance(value, dict):
        return {
            name: [0.0] * observation_dim if name == "observation" else _with_length(part, observation_dim)
            for name, part in value.items()
        }
    return [_with_length(part, observation_dim) for part in value] if isinstance(value, list) else value


def _route(
    summary: str,
    operation: str,
    body: type[msgspec.Struct],
    examples: dict[str, Any],
    answers: dict[int, tuple[type[msgspec.Struct], dict[str, Any]]],
    refusals: tuple[int, ...],
) -> dict[str, Any]:
    def content(of: type[msgspec.Struct], **more: Any) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": {"$ref": _REF.format(name=of.__name__)}} | more}}

    responses = {
        status: {"description": answer.__doc__ or "", **content(answer, example=example)}
        for status, (answer, example) in answers.items()
    }
    responses |= {status: {"description": _REFUSALS[status], **content(Refusal)} for status in refusals}
    return {
        "summary": summary,
        "operation_id": operation,
        "status_code": min(answers),
        "responses": responses,
        "openapi_extra": {"requestBody": {"required": True, **content(body, examples=examples)}},
    }


_REFUSALS = {
    400: "The body is wrong. Nothing of it was taken.",
    401: "The key in x-api-key is missing or wrong.",
    403: "A browser sent it from a page of another site.",
    408: "The body did not arrive in time.",
    413: "The body, or what it would write to the event log, is too large. Send it in parts.",
    415: "The content type is not JSON, or the content encoding is neither gzip nor zstd.",
    429: "Too many requests are in hand, or the event log is full. Nothing was taken. Send it again later.",
    503: "No policy is loaded yet.",
}

"""The Vertex AI endpoint of one environment: canary, promotion, roll-back, predictions.

An environment has one endpoint and one parent model (`orchestration.cloud.vertex_models`), both named by
`VertexTarget.name`. The endpoint's traffic split alone decides which policy serves, and one call changes it; the aliases
in the registry follow.

Every method first reads the present state, then does what is missing, and returns a sentence about it. It is safe to call
a method again.
"""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from google.api_core import exceptions
from google.cloud import aiplatform

from contracts.errors import InputError
from orchestration.cloud.target import VertexTarget, decode_target
from orchestration.cloud.vertex import CHANGED_MEANWHILE, resource_id, service_errors
from orchestration.cloud.vertex_models import CHAMPION, PREVIOUS, Promotion, VertexModels

DEPLOY_TIMEOUT_SECONDS = 1800


class Deployed(NamedTuple):
    """One policy on the endpoint."""

    id: str  # of the deployed model
    version: str
    traffic: int  # percent


def endpoint_of(vertex: str) -> "VertexEndpoint":
    """The endpoint of the environment whose `VertexTarget` is `vertex`, as JSON."""
    return VertexEndpoint(decode_target(vertex))


class VertexEndpoint:
    """The policies that serve on one environment's endpoint."""

    def __init__(self, target: VertexTarget) -> None:
        self._target = target
        self.models = VertexModels(target)

    def canary(self, version: str, share: float) -> str:
        """Deploys a registered version to the endpoint with `share` of its traffic; the champion keeps the rest.

        On an empty endpoint the version takes all the traffic. Raises InputError for a version that is not registered,
        or a share that is not from 0.01 to 1: Vertex AI splits traffic by whole percents.
        """
        percent = round(100 * share)
        if not 1 <= percent <= 100:
            raise InputError(f"share: from 0.01 to 1, as Vertex AI splits traffic by whole percents, got {share}")
        with service_errors():
            endpoint = self._endpoint()
            there = self._deployed(endpoint)
            champion = self._serving(there, other_than=version)
            if champion is None:
                percent = 100
            rest = {champion.id: 100 - percent} if champion is not None and percent < 100 else {}
            mine = next((one for one in there if one.version == version), None)
            if mine is None:
                self._deploy(endpoint, version, {"0": percent} | rest)
                return f"{version} is deployed and takes {percent}% of the traffic"
            split = {mine.id: percent} | rest
            if split == _split(there):
                return f"{version} takes {percent}% of the traffic already"
            endpoint.update(traffic_split=split)
            return f"{version} takes {percent}% of the traffic"

    def promote(self, version: str, reason: str, beside: tuple[str, float] | None = None) -> str:
        """Gives a registered version the traffic; the champion before it stays deployed, for a roll-back.

        If two clients promote at the same time, the version whose traffic was set last serves, and the alias follows it.

        Args:
          version: of the policy.
          reason: why, for the history.
          beside: the version that keeps a share of the traffic, at most half of it, and that share; a roll-back then goes
            back to it. None: all the traffic.

        Raises InputError if a version is not registered.
        """
        with service_errors():
            before = self.models.roles().get(CHAMPION)
            endpoint = self._endpoint()
            there = self._deployed(endpoint)
            wanted = _with(version, beside)
            if before == version and {one.version: one.traffic for one in there if one.traffic} == wanted:
                self.models.move(CHAMPION, version)
                return f"{version} is the champion already"
            self._share(endpoint, there, wanted)
            if before != version:
                if before is not None:
                    self.models.move(PREVIOUS, beside[0] if beside is not None else before)
                if [past.version for past in self.models.history()[-1:]] != [
                    version
                ]:  # an interrupted promotion wrote it
                    self.models.note(Promotion(promoted_at=datetime.now(UTC), version=version, reason=reason))
            self.models.move(CHAMPION, version)
            idle = self.undeploy_idle()
            serving = max(self._deployed(endpoint), key=lambda one: (one.traffic, one.version == version)).version
            if serving != version:
                self.models.move(CHAMPION, serving)
                return f"{version} was promoted, but {serving} after it: that is the champion now"
            return f"{version} is the champion, in place of {before or 'nothing'}; {idle}"

    def roll_back(self, reason: str) -> str:
        """Gives all the traffic back to the version before the champion. Raises InputError if there was none."""
        with service_errors():
            previous = self.models.roles().get(PREVIOUS)
            if previous is None:
                raise InputError(f"endpoint {self._target.name} has no earlier champion to go back to")
            return self.promote(previous, reason)

    def end_canary(self, beside: tuple[str, float] | None = None) -> str:
        """Gives the traffic to the champion and to the version `beside` it, and undeploys the versions that then have none.

        `beside`: as in `promote`.
        """
        with service_errors():
            champion = self.models.roles().get(CHAMPION)
            if champion is None:
                raise InputError(f"endpoint {self._target.name} has no champion")
            endpoint = self._endpoint()
            there = self._deployed(endpoint)
            mine = next((one for one in there if one.version == champion), None)
            if mine is None:
                raise InputError(f"endpoint {self._target.name} does not serve its champion, {champion}")
            wanted = _with(champion, beside)
            self._share(endpoint, there, wanted)
            share = "all" if wanted[champion] == 100 else f"{wanted[champion]}% of"
            return f"{champion} takes {share} the traffic; {self.undeploy_idle()}"

    def undeploy_idle(self) -> str:
        """Undeploys versions without traffic, except the one to roll back to: an idle replica costs money."""
        with service_errors():
            endpoint = self._endpoint()
            keep = set(self.models.roles().values())
            gone = []
            for one in self._deployed(endpoint):
                if not one.traffic and one.version not in keep:
                    with suppress(*CHANGED_MEANWHILE):  # it is undeployed, or has traffic now
                        endpoint.undeploy(deployed_model_id=one.id)
                        gone.append(one.version)
            return f"undeployed {', '.join(gone)}" if gone else "nothing was idle"

    def deployed(self) -> list[Deployed]:
        """The versions on the endpoint, most traffic first; empty if there is no endpoint."""
        with service_errors():
            endpoint = self._find_endpoint()
            return sorted(self._deployed(endpoint), key=lambda one: -one.traffic) if endpoint else []

    def champion(self) -> str | None:
        """The version with the alias `champion`; None if no version was promoted."""
        with service_errors():
            return self.models.roles().get(CHAMPION)

    def history(self) -> list[Promotion]:
        """Every promotion, oldest first."""
        return self.models.history()

    def predict(self, instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The endpoint's predictions, one per instance. Raises InputError if there is no endpoint."""
        with service_errors():
            endpoint = self._find_endpoint()
            if endpoint is None:
                raise InputError(f"endpoint {self._target.name} does not exist: roll a policy out first")
            predictions: list[dict[str, Any]] = endpoint.predict(instances=instances).predictions
            return predictions

    def _find_endpoint(self) -> aiplatform.Endpoint | None:
        endpoint = aiplatform.Endpoint(resource_id(self._target.name))
        try:
            endpoint.traffic_split  # noqa: B018 - asks the service: the constructor does not
        except exceptions.NotFound:
            return None
        return endpoint

    def _endpoint(self) -> aiplatform.Endpoint:
        """The endpoint, created if missing, with a fixed id: two clients at the same time cannot create two."""
        if (found := self._find_endpoint()) is not None:
            return found
        try:
            return aiplatform.Endpoint.create(
                display_name=self._target.name, endpoint_id=resource_id(self._target.name)
            )
        except exceptions.Conflict:  # AlreadyExists, as REST says it
            return aiplatform.Endpoint(resource_id(self._target.name))

    def _deployed(self, endpoint: aiplatform.Endpoint) -> list[Deployed]:
        split = endpoint.traffic_split
        return [Deployed(one.id, one.display_name, split.get(one.id, 0)) for one in endpoint.list_models()]

    def _serving(self, there: list[Deployed], other_than: str) -> Deployed | None:
        """The version from whose traffic a canary takes its share."""
        champion = self.models.roles().get(CHAMPION)
        others = [one for one in there if one.version != other_than]
        return next((one for one in others if one.version == champion), max(others, key=_traffic, default=None))

    def _share(self, endpoint: aiplatform.Endpoint, there: list[Deployed], wanted: dict[str, int]) -> None:
        """Splits the traffic by version as `wanted`, in percent; a version that is not deployed is deployed first."""
        ids = {one.version: one.id for one in there}
        missing = [version for version in wanted if version not in ids]
        for version in missing[:-1]:  # without traffic, until the last one is there
            before = _split(there)
            self._deploy(endpoint, version, {"0": 0} | before if before else {"0": 100})
            ids[version] = next(one.id for one in self._deployed(endpoint) if one.version == version)
        split = {ids[version]: percent for version, percent in wanted.items() if version in ids}
        if missing:
            self._deploy(endpoint, missing[-1], {"0": wanted[missing[-1]]} | split)
        elif split != _split(there):
            endpoint.update(traffic_split=split)

    def _deploy(self, endpoint: aiplatform.Endpoint, version: str, split: dict[str, int]) -> None:
        number = self.models.number(version)
        aiplatform.Model(resource_id(self._target.name), version=number).deploy(
            endpoint=endpoint,
            deployed_model_display_name=version,
            traffic_split=split,
            machine_type=self._target.machine_type,
            min_replica_count=self._target.min_replicas,
            max_replica_count=self._target.max_replicas,
            service_account=self._target.service_account or None,
            deploy_request_timeout=DEPLOY_TIMEOUT_SECONDS,
            sync=True,
        )


def _with(version: str, beside: tuple[str, float] | None) -> dict[str, int]:
    """The traffic of `version` and of the one beside it, in percent. A small share is at least 1%."""
    if beside is None:
        return {version: 100}
    percent = max(1, round(100 * beside[1]))
    return {version: 100 - percent, beside[0]: percent}


def _split(there: list[Deployed]) -> dict[str, int]:
    return {one.id: one.traffic for one in there if one.traffic}


def _traffic(one: Deployed) -> int:
    return one.traffic

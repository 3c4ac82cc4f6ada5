"""The server's counters, and their text form for Prometheus.

Counting costs a few additions per request; names, labels and text are made when Prometheus asks. Counters by version
and arm are kept for the latest versions only, so frequent retraining does not grow them; a live version counts as its
base.
"""

from bisect import bisect_left
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain, groupby
from operator import attrgetter

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from contracts.policies import PolicyCard, base_of
from contracts.records import Decision
from predictor.event_log import Counters
from predictor.exploration import MAX_SHARE_OF_ONE_NEW_ITEM
from predictor.line_up import LineUp
from predictor.live import LiveStatus
from predictor.publisher import Status

LATENCY_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
PROPENSITIES = (1e-6, 1e-4, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9, 0.99, 1.0)
_VERSIONS_KEPT = 8


class Histogram:
    """Counts by bucket; a value belongs to the first bucket whose bound is at least the value."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Counts `value`."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound and cumulative count of each bucket, as Prometheus defines them."""
        names = [f"{bound:g}" for bound in self.bounds] + ["+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


class Metrics:
    """The counters of one server; written by the event loop alone."""

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.latency: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(LATENCY_SECONDS))
        self.arms: OrderedDict[str, Counter[int]] = OrderedDict()
        self.propensity = Histogram(PROPENSITIES)
        self.decisions = self.rewards = self.shadows = self.fallbacks = 0
        self.statuses: Counter[str] = Counter({"activated": 0, "cancelled": 0})
        self.in_flight = 0
        self.replaced_connections = 0

    def request(self, route: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        self.requests[route, status] += 1
        self.latency[route].add(seconds)

    def decided(self, decisions: Sequence[Decision]) -> None:
        """Counts served decisions."""
        for version, of_version in groupby(decisions, lambda decision: base_of(decision.policy_version)):
            arms = self.arms.get(version)
            if arms is None:
                arms = self.arms[version] = Counter()
                if len(self.arms) > _VERSIONS_KEPT:
                    self.arms.popitem(last=False)
            arms.update(map(attrgetter("action"), of_version))
        for decision in decisions:
            self.propensity.add(decision.propensity)
        self.decisions += len(decisions)


def render(
    metrics: Metrics,
    events: Counters,
    swaps: int,
    degraded: bool,
    published: Status | None,
    line_up: LineUp | None = None,
    live: LiveStatus | None = None,
) -> bytes:
    """The metrics in Prometheus' text format.

    Args:
      metrics: the server's counters.
      events: the event log's counters.
      swaps: how often the line-up changed.
      degraded: whether the policy that the pointer names failed to load.
      published: the publisher's status; None without a publisher.
      line_up: the policies that decide; None while none is loaded.
      live: the state of live versions; None if none are followed.
    """
    registry = CollectorRegistry()
    registry.register(
        _Collector(lambda: chain(_families(metrics, events, swaps, degraded, published, line_up), _live_families(live)))
    )
    return generate_latest(registry)


class _Collector:
    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self.collect = collect


def _new_items(metrics: Metrics, card: PolicyCard) -> Iterator[Metric]:
    """The exploration of new items: how many there are, their budget, and what they took of it."""
    shown = metrics.arms.get(card.version, Counter())
    of_new = sum(shown[action] for action in card.new_actions)
    budget = min(card.exploration.new_item_share, MAX_SHARE_OF_ONE_NEW_ITEM * len(card.new_actions))
    for name, text, value in (
        (
            "predictor_new_items",
            "Items that were added later and that the serving version knows too little of.",
            len(card.new_actions),
        ),
        ("predictor_new_item_budget", "Share of the decisions that new items have together.", budget),
        (
            "predictor_new_item_share",
            "Share of the serving version's decisions that showed one.",
            of_new / max(sum(shown.values()), 1),
        ),
    ):
        gauge = GaugeMetricFamily(name, text)
        gauge.add_metric([], value)
        yield gauge


def _families(
    metrics: Metrics, events: Counters, swaps: int, degraded: bool, published: Status | None, line_up: LineUp | None
) -> Iterator[Metric]:
    requests = CounterMetricFamily("predictor_requests", "Requests answered.", labels=["route", "status"])
    for (route, status), count in metrics.requests.items():
        requests.add_metric([route, str(status)], count)
    yield requests
    if line_up is not None:
        yield from _new_items(metrics, line_up.serving.card)
    latency = HistogramMetricFamily("predictor_latency_seconds", "From request to answer.", labels=["route"])
    for route, histogram in metrics.latency.items():
        latency.add_metric([route], histogram.buckets(), histogram.sum)
    yield latency
    yield GaugeMetricFamily("predictor_in_flight", "Requests being answered.", metrics.in_flight)
    yield CounterMetricFamily(
        "predictor_replaced_connections", "Idle connections closed to make room.", metrics.replaced_connections
    )
    arms = CounterMetricFamily("predictor_decisions", "Decisions served.", labels=["policy_version", "action"])
    for version, counts in metrics.arms.items():
        for action, count in sorted(counts.items()):
            arms.add_metric([version, str(action)], count)
    yield arms
    propensity = HistogramMetricFamily("predictor_propensity", "Propensities of the decisions served.")
    propensity.add_metric([], metrics.propensity.buckets(), metrics.propensity.sum)
    yield propensity
    yield CounterMetricFamily("predictor_rewards", "Rewards taken.", metrics.rewards)
    statuses = CounterMetricFamily("predictor_statuses", "Activations and cancellations taken.", labels=["status"])
    for effect, taken in metrics.statuses.items():
        statuses.add_metric([effect], taken)
    yield statuses
    yield CounterMetricFamily("predictor_shadow_decisions", "Decisions scored, not served.", metrics.shadows)
    yield CounterMetricFamily(
        "predictor_fallbacks", "Times a policy failed and the baseline served.", metrics.fallbacks
    )
    yield CounterMetricFamily("predictor_swaps", "Changes of the line-up.", swaps)
    shares = GaugeMetricFamily(
        "predictor_share",
        "Share of the decisions that a policy makes: serving, and a candidate or an anchor.",
        labels=["role", "policy_version"],
    )
    for role, (version, share) in (line_up.deciding if line_up else {}).items():
        shares.add_metric([role, version], share)
    yield shares
    yield GaugeMetricFamily("predictor_degraded", "1 while the wanted policy does not load.", int(degraded))
    by_outcome = CounterMetricFamily("predictor_events", "Events by what became of them.", labels=["outcome"])
    for outcome in ("logged", "delivered", "dropped", "retried"):
        by_outcome.add_metric([outcome], getattr(events, outcome))
    yield by_outcome
    yield GaugeMetricFamily("predictor_events_pending", "Events in memory, not yet written.", events.pending)
    if published is not None:
        to_topic = CounterMetricFamily("predictor_published", "Events on their way to the topic.", labels=["outcome"])
        to_topic.add_metric(["published"], published.published)
        to_topic.add_metric(["retried"], published.retried)
        yield to_topic
        yield GaugeMetricFamily("predictor_segments_waiting", "Sealed segments not yet published.", published.waiting)


def _live_families(live: LiveStatus | None) -> Iterator[Metric]:
    if live is None:
        return
    yield CounterMetricFamily("predictor_live_versions", "Live versions applied.", live.applied)
    yield CounterMetricFamily("predictor_live_refused", "Live versions refused before serving.", live.refused)
    yield GaugeMetricFamily(
        "predictor_live", "1 while a live version decides, 0 while its base does.", int(live.version is not None)
    )
    if live.age_seconds is not None:
        yield GaugeMetricFamily("predictor_live_age_seconds", "Since the last live version came.", live.age_seconds)

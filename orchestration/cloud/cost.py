"""The command `cost`: what an environment costs per month at a rate of decisions, by part, from a dated list of prices.

An estimate from list prices and from sizes and rates that were measured on this project. It leaves out what depends on
the contents of a window or has no fixed size: training and tuning machines, batch jobs, storage, network and logs.
"""

import argparse
import math
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from contracts.command_line import FlagParser, add_flags, from_flags
from contracts.errors import InputError
from orchestration.cloud import configuration
from orchestration.cloud.configuration import Cloud, Configuration

PRICES = Path(__file__).with_name("prices.toml")
HOURS = 730  # of a month, as Google's own estimates count them
SECONDS = HOURS * 3600
GIB, TIB = 2**30, 2**40
DAYS_OF_RETENTION = 7  # of the events topic, in infra/main.tf
FREE_WRITE_API_BYTES = 2 * TIB
LARGEST_SHARE = 0.6  # of a replica's capacity: Vertex AI adds a replica above 60% of a CPU
_HELP = """Estimates what an environment costs per month, by part, from list prices (orchestration/cloud/prices.toml).

    python -m orchestration.cli cost --config prod --rate 1000

Not in it: training and tuning machines, batch jobs, storage, network and logs.
"""


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One list price."""

    usd: Annotated[float, Meta(ge=0)]
    unit: str
    source: Annotated[str, Meta(pattern="^https://")]


class PriceList(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`prices.toml`."""

    as_of: Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    price: dict[str, Price]

    def usd(self, name: str) -> float:
        """The price of that name. Raises InputError if the list has none."""
        if name not in self.price:
            raise InputError(f"--prices: a list with the price {name}, got one with {', '.join(self.price)}")
        return self.price[name].usd


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What the environment serves; each field is a flag. The defaults were measured on this project."""

    rate: Annotated[float, Meta(gt=0, description="decisions per second, on average over the month")]
    rewards_per_decision: Annotated[float, Meta(ge=0, description="reward events per decision")] = 1.0
    decision_bytes: Annotated[int, Meta(gt=0, description="size of a decision as it is published")] = 593
    reward_bytes: Annotated[int, Meta(gt=0, description="size of a reward as it is published")] = 142
    decisions_per_replica: Annotated[
        float, Meta(gt=0, description="decisions per second that a replica can serve, one per request")
    ] = 2000.0
    events_per_vcpu: Annotated[
        float, Meta(gt=0, description="events per second that a vCPU of the streaming job can take")
    ] = 1500.0
    write_method: Annotated[
        Literal["storage_write_api", "streaming_inserts"], Meta(description="of the streaming job")
    ] = "storage_write_api"

    @property
    def events(self) -> float:
        """Events per month."""
        return self.rate * (1 + self.rewards_per_decision) * SECONDS

    @property
    def event_bytes(self) -> float:
        """Published bytes per month."""
        return self.rate * (self.decision_bytes + self.rewards_per_decision * self.reward_bytes) * SECONDS


class Part(NamedTuple):
    """One part of the cost."""

    name: str
    usd: float  # per month
    why: str


def read_prices(path: Path = PRICES) -> PriceList:
    """The list in a file. Raises InputError if it is no list of prices."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), PriceList)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InputError(f"--prices: {path}: {error}") from None


def estimate(cloud: Cloud, load: Load, prices: PriceList, canary_share: float = 0.0) -> list[Part]:
    """The parts of the monthly cost.

    Args:
      cloud: the environment.
      load: what it serves.
      prices: the list.
      canary_share: share of the time in which a candidate is tried out beside the champion.
    """
    return [
        *_endpoint(cloud, load, prices, canary_share),
        *_events(load, prices),
        _streaming_job(load, prices),
        _inserts(load, prices),
        _runs(cloud, prices),
    ]


def _endpoint(cloud: Cloud, load: Load, prices: PriceList, canary_share: float) -> Iterator[Part]:
    hour = prices.usd(f"prediction_{cloud.machine_type.replace('-', '_')}_hour")
    needed = math.ceil(load.rate / (LARGEST_SHARE * load.decisions_per_replica))
    if needed > cloud.max_replicas:
        raise InputError(
            f"--rate: at most what cloud.max_replicas ({cloud.max_replicas}) can serve, "
            f"{cloud.max_replicas * LARGEST_SHARE * load.decisions_per_replica:g}, got {load.rate:g}"
        )
    serving = max(cloud.min_replicas, needed)
    yield Part("endpoint, champion", serving * hour * HOURS, f"{serving} × {cloud.machine_type}")
    spare = cloud.min_replicas * hour * HOURS
    yield Part("endpoint, previous", spare, f"{cloud.min_replicas} kept for a roll-back")
    yield Part("endpoint, candidate", spare * canary_share, f"{cloud.min_replicas}, {canary_share:.0%} of the time")


def _events(load: Load, prices: PriceList) -> Iterator[Part]:
    tib = load.event_bytes / TIB
    yield Part("Pub/Sub", 2 * tib * prices.usd("pubsub_tib"), f"{tib:.2f} TiB, published and delivered")
    kept = load.event_bytes * DAYS_OF_RETENTION * 24 / HOURS / GIB
    yield Part(
        "Pub/Sub, kept", kept * prices.usd("pubsub_retention_gib_month"), f"{kept:.0f} GiB of {DAYS_OF_RETENTION} days"
    )


def _streaming_job(load: Load, prices: PriceList) -> Part:
    # A worker has two vCPUs, and there is one at least.
    vcpus = 2 * math.ceil(load.events / SECONDS / load.events_per_vcpu / 2)
    processed = load.event_bytes / GIB
    usd = vcpus * HOURS * prices.usd("streaming_vcpu_hour") + processed * prices.usd("streaming_engine_gib")
    return Part("Dataflow, ingest_events", usd, f"{vcpus} vCPUs, {processed:.0f} GiB through Streaming Engine")


def _inserts(load: Load, prices: PriceList) -> Part:
    if load.write_method == "storage_write_api":
        billed = max(0.0, load.event_bytes - FREE_WRITE_API_BYTES) / GIB
        return Part("BigQuery, rows", billed * prices.usd("write_api_gib"), f"{billed:.0f} GiB above the free 2 TiB")
    decisions = load.rate * SECONDS * max(1024, load.decision_bytes)
    rewards = load.rate * load.rewards_per_decision * SECONDS * max(1024, load.reward_bytes)
    billed = (decisions + rewards) / GIB
    return Part("BigQuery, rows", billed * prices.usd("insert_all_gib"), f"{billed:.0f} GiB at 1 KiB per row at least")


def _runs(cloud: Cloud, prices: PriceList) -> Part:
    runs = runs_per_month(cloud.cron)
    return Part("pipeline runs", runs * prices.usd("pipeline_run"), f"{runs:.0f} runs: {cloud.cron}")


def runs_per_month(cron: str) -> float:
    """How often a cron line fires in a month of 730 hours, from its minutes and hours; other fields must be *.

    Raises InputError for a line with days, months or weekdays.
    """
    minute, hour, *rest = cron.split()[-5:]
    if rest != ["*"] * 3:
        raise InputError(f"cloud.cron: a line without days, months and weekdays, for an estimate, got {cron!r}")
    return _count(minute, 0, 59) * _count(hour, 0, 23) * HOURS / 24


def _count(field: str, smallest: int, largest: int) -> int:
    """How many numbers a field of a cron line names."""
    found: set[int] = set()
    for part in field.split(","):
        numbers, _, step = part.partition("/")
        if numbers == "*":
            first, last = smallest, largest
        else:
            begin, _, end = numbers.partition("-")
            first, last = int(begin), int(end or begin)
        found |= set(range(first, last + 1, int(step or 1)))
    return len(found)


def canary_share(loaded: Configuration, cron: str) -> float:
    """The share of the time in which retrainings on that cron line try candidates out."""
    seconds = float(str(loaded.own["retrain"].get("canary_seconds", 0.0)))
    return min(1.0, seconds * runs_per_month(cron) / SECONDS)


def table(parts: Sequence[Part], load: Load, prices: PriceList) -> Iterator[str]:
    """The estimate as lines of text."""
    total = sum(part.usd for part in parts)
    for part in [*parts, Part("together", total, f"{total / (load.rate * SECONDS) * 1e6:.2f} per million decisions")]:
        yield f"{part.name:<24} {part.usd:>9,.0f}  {part.why}"
    yield f"US dollars per month at {load.rate:g} decisions per second; list prices of {prices.as_of}."


def add_command(subparsers: "argparse._SubParsersAction[FlagParser]") -> None:
    """Adds the command."""
    cost = subparsers.add_parser("cost", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    cost.add_argument("--config", required=True, help="dev, prod, or a TOML file")
    cost.add_argument("--prices", type=Path, default=PRICES, help="another list of prices (default: the project's own)")
    add_flags(cost, Load, leave_out={"rate"})
    cost.add_argument("--rate", required=True, help="decisions per second, on average over the month")
    cost.set_defaults(command=_cost)


def _cost(arguments: argparse.Namespace) -> int:
    loaded = configuration.load(arguments.config)
    if loaded.cloud is None:
        raise InputError(f"--config: an environment on Google Cloud, got {arguments.config!r}")
    load, prices = from_flags(arguments, Load), read_prices(arguments.prices)
    parts = estimate(loaded.cloud, load, prices, canary_share(loaded, loaded.cloud.cron))
    for line in table(parts, load, prices):
        print(line)
    return 0

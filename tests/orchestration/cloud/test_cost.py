"""The estimate of an environment's cost."""

import msgspec
import pytest

from contracts.errors import InputError
from contracts.records import Decision, RewardEvent, encoder
from orchestration import cli
from orchestration.cloud import configuration, cost
from orchestration.cloud.cost import Load

PROD = configuration.load("prod").cloud
assert PROD is not None


def usd(load: Load, canary: float = 0.0, **changed) -> dict[str, float]:
    cloud = msgspec.structs.replace(PROD, **changed)
    return {part.name: part.usd for part in cost.estimate(cloud, load, cost.read_prices(), canary)}


def test_the_list_of_prices_is_dated_and_cited():
    prices = cost.read_prices()
    assert prices.as_of >= "2026-11-28"
    hosts = {price.source.split("/")[2] for price in prices.price.values()}
    assert hosts == {"cloud.google.com"}


def test_every_environment_has_the_prices_it_needs():
    for name in ("dev", "prod"):
        assert cli.main(["cost", "--config", name, "--rate", "100"]) == 0


def test_the_parts_by_hand():
    """100 decisions and rewards a second for 730 hours: 262.8 million of each, 735 bytes together."""
    found = usd(Load(rate=100.0), canary=0.5)
    assert found["endpoint, champion"] == found["endpoint, previous"] == pytest.approx(2 * 0.2186 * 730)
    assert found["endpoint, candidate"] == pytest.approx(0.5 * 2 * 0.2186 * 730)
    published = 262.8e6 * 735
    assert found["Pub/Sub"] == pytest.approx(2 * published / 2**40 * 40)
    assert found["Pub/Sub, kept"] == pytest.approx(published / 2**30 * 7 / (730 / 24) * 0.27)
    assert found["Dataflow, ingest_events"] == pytest.approx(2 * 730 * 0.069 + published / 2**30 * 0.018)
    assert found["BigQuery, rows"] == 0.0  # within the free 2 TiB
    inserted = usd(Load(rate=100.0, write_method="streaming_inserts"))["BigQuery, rows"]
    assert inserted == pytest.approx(2 * 262.8e6 * 1024 / 2**30 * 0.05)
    assert found["pipeline runs"] == pytest.approx(730 * 0.03)


def test_more_decisions_need_more_replicas_up_to_the_most():
    few, many = (usd(Load(rate=rate))["endpoint, champion"] for rate in (2400.0, 2401.0))
    assert many / few == pytest.approx(3 / 2)
    with pytest.raises(InputError, match=r"--rate: at most what cloud.max_replicas \(10\) can serve, 12000, got 12001"):
        usd(Load(rate=12001.0))


@pytest.mark.parametrize(
    ("cron", "runs"),
    [
        ("5 * * * *", 730),
        ("TZ=Etc/UTC */30 * * * *", 1460),
        ("0,30 8-17 * * *", 20 * 730 / 24),
        ("0 0-23/6 * * *", 4 * 730 / 24),
    ],
)
def test_a_cron_line_is_counted(cron, runs):
    assert cost.runs_per_month(cron) == pytest.approx(runs)


def test_what_cannot_be_estimated_is_one_line(tmp_path, capsys):
    with pytest.raises(InputError, match="a line without days, months and weekdays"):
        cost.runs_per_month("0 0 1 * *")
    for command in (["--config", "local", "--rate", "1"], ["--config", "prod", "--rate", "0"], ["--config", "prod"]):
        assert cli.main(["cost", *command]) == 2
    other = tmp_path / "prices.toml"
    other.write_text('as_of = "2026-01-01"\n[price.pubsub_tib]\nusd = 1\nunit = "TiB"\nsource = "https://x"\n')
    assert cli.main(["cost", "--config", "prod", "--rate", "1", "--prices", str(other)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    assert errors[3].endswith("a list with the price prediction_n1_standard_4_hour, got one with pubsub_tib")


def test_the_command_shows_every_part(capsys):
    assert cli.main(["cost", "--config", "prod", "--rate", "1000"]) == 0
    *parts, together, last = capsys.readouterr().out.splitlines()
    amounts = [float(line[24:35].replace(",", "")) for line in parts]
    assert sum(amounts) == pytest.approx(float(together[24:35].replace(",", "")), abs=len(parts))
    assert last.startswith("US dollars per month at 1000 decisions per second; list prices of 2026-11-28")


def test_the_default_sizes_are_those_of_events():
    """An event of 20 dimensions, as the loop's viewers cause it, is about as large as the defaults say."""
    decision = Decision(
        decision_id="018f0000-0000-7000-8000-000000000000",
        decided_at="2026-01-01T00:00:00.123456Z",
        policy_version="lin_ucb-20260101T000000.000000Z-0a1b2c3d",
        user_id="4711",
        observation=[0.1234567890123 * (k + 1) for k in range(20)],
        action=17,
        propensity=0.123456789,
    )
    reward = RewardEvent(
        decision_id=decision.decision_id, occurred_at="2026-01-01T00:00:00.123456Z", reward=0.123456789
    )
    load = Load(rate=1.0)
    assert len(encoder.encode(decision)) == pytest.approx(load.decision_bytes, rel=0.2)
    assert len(encoder.encode(reward)) == pytest.approx(load.reward_bytes, rel=0.2)

import re

import msgspec

from contracts.policies import CARD_NAME, encode_json
from predictor import deciding
from predictor import policy as policy_files
from predictor.event_log import Counters
from predictor.line_up import LineUp
from predictor.messages import Instance
from predictor.metrics import Histogram, Metrics, render
from predictor.publisher import Status
from tests.linear_policies import write_policy
from tests.predictor.test_app import observe
from tests.servers import predictor


def test_a_histogram_counts_up_to_and_including_a_bound():
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 3.0):
        histogram.add(value)
    assert histogram.buckets() == [("0.1", 2.0), ("1", 3.0), ("+Inf", 4.0)]
    assert histogram.sum == 3.65


def test_the_publisher_is_in_the_text_only_if_there_is_one():
    counters = Counters(logged=3, delivered=1, dropped=1, pending=1, retried=0)
    without = render(Metrics(), counters, swaps=2, degraded=True, published=None).decode()
    assert "predictor_swaps_total 2.0" in without
    assert "predictor_degraded 1.0" in without
    assert 'predictor_events_total{outcome="dropped"} 1.0' in without
    assert "predictor_published" not in without
    text = render(Metrics(), counters, 0, False, Status(published=7, waiting=4)).decode()
    assert 'predictor_published_total{outcome="published"} 7.0' in text
    assert "predictor_segments_waiting 4.0" in text


def test_the_shares_of_the_policies_that_decide(tmp_path):
    counters = Counters(logged=0, delivered=0, dropped=0, pending=0, retried=0)
    assert "predictor_share{" not in render(Metrics(), counters, 0, False, None).decode()
    for version in ("v1", "v2"):
        write_policy(tmp_path / version)
    serving, anchor = (policy_files.load(tmp_path / version) for version in ("v2", "v1"))
    line_up = LineUp(serving, policy_files.baseline(serving.card), anchor=anchor, anchor_share=0.25)
    text = render(Metrics(), counters, 0, False, None, line_up).decode()
    assert 'predictor_share{policy_version="v2",role="serving"} 0.75' in text
    assert 'predictor_share{policy_version="v1",role="anchor"} 0.25' in text


def test_the_budget_of_new_items_and_what_they_took_of_it(tmp_path):
    card = msgspec.structs.replace(write_policy(tmp_path / "v1"), new_actions=[1, 4])
    (tmp_path / "v1" / CARD_NAME).write_bytes(encode_json(card))
    policy = policy_files.load(tmp_path / "v1")
    line_up, metrics = LineUp(policy, policy_files.baseline(policy.card)), Metrics()
    asked = deciding.check([Instance(observation) for observation in observe(2000)], line_up)
    decisions = [decision for [decision] in deciding.decide(line_up, asked).slates]
    assert deciding.replay(policy, decisions) == ([d.action for d in decisions], [d.propensity for d in decisions])
    metrics.decided(decisions)
    counters = Counters(logged=0, delivered=0, dropped=0, pending=0, retried=0)
    text = render(metrics, counters, 0, False, None, line_up).decode()
    assert "predictor_new_items 2.0" in text and "predictor_new_item_budget 0.04" in text
    shown = sum(decision.action in (1, 4) for decision in decisions) / 2000
    assert f"predictor_new_item_share {shown}" in text and shown < 0.055


def test_metrics_add_up(tmp_path):
    write_policy(tmp_path / "v1")
    with predictor(tmp_path / "v1", tmp_path / "events") as server:
        body = {"instances": [{"observation": observation} for observation in observe(30)]}
        actions = [p["action"] for _ in range(2) for p in server.post("/predict", body).body["predictions"]]
        server.post("/predict", {})
        server.post("/rewards", {"rewards": []})
        text = server.read("/metrics").decode()
    values = dict(re.findall(r"^(\S+) (\S+)$", text, re.MULTILINE))
    assert values['predictor_requests_total{route="/predict",status="200"}'] == "2.0"
    assert values['predictor_requests_total{route="/predict",status="400"}'] == "1.0"
    assert values['predictor_latency_seconds_count{route="/predict"}'] == "3.0"
    assert values["predictor_propensity_count"] == "60.0"
    assert values['predictor_propensity_bucket{le="+Inf"}'] == "60.0"
    for action in set(actions):
        name = f'predictor_decisions_total{{action="{action}",policy_version="v1"}}'
        assert values[name] == f"{actions.count(action)}.0"
    assert values['predictor_events_total{outcome="logged"}'] == "60.0"
    assert values["predictor_degraded"] == "0.0"

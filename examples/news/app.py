"""Readers of a news page: `python -m examples.news.app news 4` asks for articles until 4 policies have been trained."""

import json
import random
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from predictor.client import Client
from predictor.messages import Instance, SentReward

SECTIONS, DEVICES = ["politics", "economy", "sports", "culture", "science"], ["phone", "desktop"]


def chance(reader: dict, article: dict) -> float:
    """The probability of a click, which no policy sees."""
    short = reader["device"] == "phone" and article["words"] < 500
    return 0.05 + 0.45 * (article["topic"] == reader["section"]) + 0.1 * short


project, wanted = Path(sys.argv[1]), int(sys.argv[2])
articles = {one["item_id"]: one["attributes"] for one in json.loads((project / "catalogue.json").read_text())}
draw, begin, got, best, later = random.Random(1), time.monotonic(), [], [], list[SentReward]()
versions: set[str] = set()
with Client(json.loads((project / "running.json").read_text())["predictor"]) as client:
    while len(got) < 2000:  # readers of what was learned, who are counted
        first = int(time.monotonic() - begin)  # an article leaves the page every second, and another one comes
        page = [list(articles)[(first + place) % len(articles)] for place in range(30)]
        readers = [{"section": draw.choice(SECTIONS), "device": draw.choice(DEVICES), "hour": 9} for _ in range(20)]
        shown = client.predict([Instance(context=reader, candidates=page) for reader in readers])
        for reader, one in zip(readers, shown, strict=True):
            if draw.random() < chance(reader, articles[one.item_id]):  # a click comes within a second
                at = datetime.now(UTC) + timedelta(seconds=draw.uniform(0.1, 1))
                later.append(SentReward(one.decision_id, 1.0, at))
            versions.add(one.policy_version)
            if len(versions) > wanted:  # the first one is not trained
                got.append(chance(reader, articles[one.item_id]))
                best.append(max(chance(reader, articles[other]) for other in page))
        now = datetime.now(UTC)
        client.rewards([click for click in later if click.occurred_at <= now])
        later = [click for click in later if click.occurred_at > now]
        time.sleep(0.1)
print(f"{wanted} policies later: {sum(got) / sum(best):.1%} of the clicks that the best article for each reader gets")

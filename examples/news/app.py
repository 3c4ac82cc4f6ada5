"""Readers of a news page: `python examples/news/app.py news 100` asks for an article for each of them, for 100 seconds."""

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


project, seconds = Path(sys.argv[1]), float(sys.argv[2])
articles = {one["item_id"]: one["attributes"] for one in json.loads((project / "catalogue.json").read_text())}
draw, begin, got, best, later = random.Random(1), time.monotonic(), 0.0, 0.0, list[SentReward]()
with Client(json.loads((project / "running.json").read_text())["predictor"]) as client:
    while (age := time.monotonic() - begin) < seconds:
        first = int(age)  # an article leaves the page every second, and another one comes
        page = [list(articles)[(first + place) % len(articles)] for place in range(30)]
        readers = [{"section": draw.choice(SECTIONS), "device": draw.choice(DEVICES), "hour": 9} for _ in range(20)]
        shown = client.predict([Instance(context=reader, candidates=page) for reader in readers])
        chances = [chance(reader, articles[one.item_id]) for reader, one in zip(readers, shown, strict=True)]
        for one, likely in zip(shown, chances, strict=True):
            if draw.random() < likely:  # a click comes within a second
                at = datetime.now(UTC) + timedelta(seconds=draw.uniform(0.1, 1))
                later.append(SentReward(one.decision_id, 1.0, at))
        now = datetime.now(UTC)
        client.rewards([click for click in later if click.occurred_at <= now])
        later = [click for click in later if click.occurred_at > now]
        if age > 0.75 * seconds:  # the last quarter shows what was learned
            got += sum(chances)
            best += sum(max(chance(reader, articles[one]) for one in page) for reader in readers)
        time.sleep(0.1)
print(f"clicks in the last quarter: {got / best:.1%} of those that the best article for each reader gets")

"""Customers of a shop: `python -m examples.prices.app shop 100` asks which discount to offer each, for 100 seconds."""

import json
import random
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from predictor.client import Client
from predictor.messages import Instance, SentReward

DISCOUNTS = {"none": 0.0, "five": 0.05, "ten": 0.1, "twenty": 0.2}
BUYS = {"new": (0.2, 2.5), "regular": (0.7, 0.2), "hesitant": (0.1, 4.0)}  # without a discount; per unit of discount


def margin(who: str, offer: str) -> float:
    """The expected gain per unit of the price, which no policy sees: chance of a purchase times what is left of it."""
    plain, pull = BUYS[who]
    return (plain + pull * DISCOUNTS[offer]) * (0.4 - DISCOUNTS[offer])


project, seconds = Path(sys.argv[1]), float(sys.argv[2])
draw, begin, got, best, later = random.Random(1), time.monotonic(), 0.0, 0.0, list[SentReward]()
with Client(json.loads((project / "running.json").read_text())["predictor"]) as client:
    while (age := time.monotonic() - begin) < seconds:
        people = [(draw.choice(list(BUYS)), draw.uniform(10, 110)) for _ in range(20)]
        rules = [[one for one in DISCOUNTS if one != "twenty" or basket >= 50] for _, basket in people]  # the rule
        contexts = [{"customer": who, "basket": basket} for who, basket in people]
        asked = [Instance(context=one, candidates=allowed) for one, allowed in zip(contexts, rules, strict=True)]
        for (who, _), allowed, offer in zip(people, rules, client.predict(asked), strict=True):
            plain, pull = BUYS[who]
            if draw.random() < plain + pull * DISCOUNTS[offer.item_id]:
                at = datetime.now(UTC) + timedelta(seconds=draw.uniform(0, 4))  # a purchase takes some seconds
                later.append(SentReward(offer.decision_id, 0.4 - DISCOUNTS[offer.item_id], at))
            if age > 0.75 * seconds:  # the last quarter shows what was learned
                got, best = got + margin(who, offer.item_id), best + max(margin(who, one) for one in allowed)
        now = datetime.now(UTC)
        client.rewards([gain for gain in later if gain.occurred_at <= now])
        later = [gain for gain in later if gain.occurred_at > now]
        time.sleep(0.1)
print(f"gain in the last quarter: {got / best:.1%} of that of the best discount for each customer")

"""Customers of a shop: `python -m examples.prices.app shop 4` asks for discounts until 4 policies have been trained."""

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


def chance(who: str, offer: str) -> float:
    """The probability of a purchase, which no policy sees."""
    return BUYS[who][0] + BUYS[who][1] * DISCOUNTS[offer]


def gain(offer: str) -> float:
    """What is left of the price when the customer buys."""
    return 0.4 - DISCOUNTS[offer]


project, wanted = Path(sys.argv[1]), int(sys.argv[2])
draw, got, best, later, versions = random.Random(1), [], [], list[SentReward](), set[str]()
with Client(json.loads((project / "running.json").read_text())["predictor"]) as client:
    while len(got) < 2000:  # customers of what was learned, who are counted
        people = [(draw.choice(list(BUYS)), draw.uniform(10, 110)) for _ in range(20)]
        rules = [[one for one in DISCOUNTS if one != "twenty" or basket >= 50] for _, basket in people]  # the rule
        contexts = [{"customer": who, "basket": basket} for who, basket in people]
        asked = [Instance(context=one, candidates=allowed) for one, allowed in zip(contexts, rules, strict=True)]
        for (who, _), allowed, one in zip(people, rules, client.predict(asked), strict=True):
            if draw.random() < chance(who, one.item_id):  # a purchase comes within four seconds
                at = datetime.now(UTC) + timedelta(seconds=draw.uniform(0, 4))
                later.append(SentReward(one.decision_id, gain(one.item_id), at))
            versions.add(one.policy_version)
            if len(versions) > wanted:  # the first one is not trained
                got.append(chance(who, one.item_id) * gain(one.item_id))
                best.append(max(chance(who, other) * gain(other) for other in allowed))
        now = datetime.now(UTC)
        client.rewards([purchase for purchase in later if purchase.occurred_at <= now])
        later = [purchase for purchase in later if purchase.occurred_at > now]
        time.sleep(0.1)
print(f"{wanted} policies later: {sum(got) / sum(best):.1%} of the gain of the best discount for each customer")

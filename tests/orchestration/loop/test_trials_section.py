import re

import msgspec

from orchestration.loop.trials import Trials, trials
from orchestration.loop.trials_section import section
from tests.orchestration.loop.reports import window
from tests.orchestration.loop.test_trials import LOOKS


def test_the_section_shows_every_look_and_what_caution_cost():
    windows = [msgspec.structs.replace(window(number), look=look) for number, look in enumerate(LOOKS)]
    made = section(windows, trials(LOOKS))
    assert made.count("<tr>") == 1 + 6
    assert "1 confirmed, 1 rolled back" in made
    assert f"Caution cost -6.0 reward, {-6.0 / (len(LOOKS) * 100 * 2.8):+.2%} of what was earned" in made
    cells = re.sub(r"<td[^>]*>", "<td>", made)
    assert "<td>1,234</td><td>567</td><td>+5.0</td>" in cells
    assert "on probation</td><td>0</td><td></td>" in cells  # no gain without decisions


def test_without_probation_there_is_no_section():
    assert section([window(0), window(1)], Trials()) == ""

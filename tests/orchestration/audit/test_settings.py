"""The guard's settings."""

import pytest

from contracts.command_line import build
from contracts.errors import InputError
from orchestration.audit.settings import GuardSettings


def test_a_person_ends_a_hold_unless_a_rule_is_given() -> None:
    assert GuardSettings().accept_consistent_after == 0
    with pytest.raises(InputError, match="accept_consistent_after: Expected `int` >= 0, got -1"):
        build(GuardSettings, {"accept_consistent_after": -1})

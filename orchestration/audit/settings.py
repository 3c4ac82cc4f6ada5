"""The settings of the guard. Apart from the guard, which needs the whole of Beam, trainer and predictor."""

from typing import Annotated

import msgspec
from msgspec import Meta


class GuardSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ends a hold without a person."""

    accept_consistent_after: Annotated[
        int,
        Meta(
            ge=0,
            description="accept a consistent change of the rewards' meaning after so many windows of it; 0 waits for a"
            " person",
        ),
    ] = 0

"""The part of the report's page about versions on probation."""

from collections.abc import Sequence

from orchestration.loop.report import WindowReport
from orchestration.loop.report_tables import Html, short, table, window_name
from orchestration.loop.trials import Trials


def section(windows: Sequence[WindowReport], of_all: Trials) -> str:
    """The part of the page about probation, as HTML; empty if no version was on probation.

    Args:
      windows: with the look after each.
      of_all: the looks added up.
    """
    earned = sum(window.decisions * window.mean_expected_reward for window in windows)
    rows = [
        (
            window_name(window),
            Html(short(look.version)),
            Html(short(look.anchor)),
            look.outcome,
            look.decisions,
            "" if look.gain is None else f"{look.gain:+.3f} [{look.low:+.3f}, {look.high:+.3f}]",
            "" if look.needed is None else look.needed,
            "" if look.needed_at_equal_share is None else look.needed_at_equal_share,
            f"{look.cost:+.1f}",
        )
        for window in windows
        if (look := window.look) is not None
    ]
    if not rows:
        return ""
    header = [
        "after window",
        "version",
        "anchor",
        "outcome",
        "decisions so far",
        "gain per decision",
        "more needed, about",
        "at a share of one half",
        "reward lost to caution so far",
    ]
    share = f", {of_all.cost / earned:+.2%} of what was earned" if earned else ""
    return f"""<h2>On probation</h2>
<p class="note">A new version serves beside its anchor, the last confirmed version, which keeps a share of the decisions. The
bounds of the gain hold however often one looks. In all: {of_all.confirmed} confirmed, {of_all.rolled_back} rolled back.
Caution cost {of_all.cost:+.1f} reward{share}, by the log's estimate.</p>
<div class="scroll">{table(header, rows, text=(1, 2, 3))}</div>"""

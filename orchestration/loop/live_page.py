"""The live page beside a run: a process of its own that reads what the run writes, so that nothing waits for it."""

import contextlib
import sys
from collections.abc import Iterator

from beam_jobs.movielens import Reference
from contracts.command_line import say
from orchestration.loop.run_folder import LivePage, RunFolder, Running
from orchestration.loop.settings import LoopSettings
from orchestration.processes import Child, wait_until

START_TIMEOUT_SECONDS = 30.0


@contextlib.contextmanager
def shown(folder: RunFolder, settings: LoopSettings, reference: Reference) -> Iterator[None]:
    """Serves the page while the block runs, and prints its address. A page that fails does not stop the run."""
    tell(folder, reference, None)
    try:
        if settings.page == "off":
            yield
            return
        command = [sys.executable, "-m", "orchestration.page", "--root", str(folder.root)]
        command += ["--host", settings.page_host, "--port", str(settings.page_port)]
        folder.page.unlink(missing_ok=True)  # of a run that was killed
        with Child("page", command, folder.logs / "page.log") as child:
            page = _address(folder, child)
            say(f"Live page: {page.address}" if page else f"Live page: it does not start; see {child.log}")
            yield
    finally:
        tell(folder, reference, None)


def tell(folder: RunFolder, reference: Reference, predictor: str | None) -> None:
    """Writes down what only the running loop knows: its predictor's address, and what rewards are compared with."""
    folder.write_running(
        Running(
            predictor=predictor,
            oracle=reference.oracle,
            best_fixed=reference.best_fixed_action,
            uniform=reference.uniform,
        )
    )


def _address(folder: RunFolder, child: Child) -> LivePage | None:
    """Where the page is, once it is up; None when it ended or takes too long."""
    found: list[LivePage] = []

    def up() -> bool:
        found.extend(page for page in [folder.read_page()] if page is not None)
        return bool(found) or child.exit_code() is not None

    wait_until(up, START_TIMEOUT_SECONDS)
    return found[0] if found else None

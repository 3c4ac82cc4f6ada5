import contextlib

import pytest
from google.cloud import storage as cloud

from contracts import policies
from contracts.errors import InputError
from orchestration import emulators
from predictor import policy, storage
from predictor.serving import Champion
from tests.linear_policies import write_policy


@pytest.fixture
def bucket(emulators_environment, tmp_path, monkeypatch):
    """A bucket of the Cloud Storage emulator."""
    with emulators.storage_emulator(tmp_path, tmp_path / "buckets", emulators_environment) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "test-project")
        with contextlib.closing(cloud.Client()) as client:
            yield client.create_bucket("models")


def test_a_policy_is_copied_without_its_checkpoint(bucket, tmp_path):
    card = write_policy(tmp_path / "v1")
    for name in (policies.CARD_NAME, policies.LINEAR_NAME):
        bucket.blob(f"runs/v1/{name}").upload_from_filename(tmp_path / "v1" / name)
    bucket.blob("runs/v1/saved_model/variables/index").upload_from_string(b"deep")
    bucket.blob(f"runs/v1/{policies.CHECKPOINT_NAME}/statistics.npz").upload_from_string(b"large")
    bucket.blob("runs/v10/other").upload_from_string(b"its name begins alike")
    bucket.blob("runs/v1/../outside").upload_from_string(b"escapes")
    with storage.copied("gs://models/runs/v1/") as folder:
        assert policy.load(folder).card == card
        copied = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert copied == {policies.LINEAR_NAME, policies.CARD_NAME, "saved_model/variables/index"}
        assert not (folder.parent / "outside").exists()
    assert not folder.exists()
    champion = Champion("gs://models/runs/v1")
    champion.start()
    assert champion.line_up.serving.card == card


def test_no_policy_there(bucket):
    for uri, message in [
        ("gs://models/nothing", r"gs://models/nothing is not a policy \(it has no policy.json\)$"),
        ("gs://missing/v1", "cannot read gs://missing/v1: 404 "),
    ]:
        with pytest.raises(InputError, match=f"^policy: {message}"):
            Champion(uri).start()

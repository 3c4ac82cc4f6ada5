import contextlib

import pytest
from google.cloud import storage as cloud

from contracts import policies
from contracts.errors import InputError
from predictor import policy, storage
from predictor.follower import PolicyFollower
from tests.linear_policies import point_at, write_policy
from tests.servers import predictor
from tests.storage import storage_emulator


@pytest.fixture
def bucket(emulators_environment, tmp_path, monkeypatch):
    """A bucket of the Cloud Storage emulator."""
    with storage_emulator(tmp_path, tmp_path / "buckets", emulators_environment) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "test-project")
        with contextlib.closing(cloud.Client()) as client:
            yield client.create_bucket("models")


@pytest.fixture
def store(bucket, tmp_path):
    """Promotes versions in gs://models/store, of which v1 is the champion."""
    uploaded = Uploaded(bucket, tmp_path / "drafts")
    uploaded.policy("v1", seed=1)
    uploaded.policy("v2", seed=2)
    uploaded.promote("v1")
    return uploaded


@pytest.fixture
def follower(store):
    with contextlib.closing(PolicyFollower(store.uri)) as made:
        yield made


class Uploaded:
    uri = "gs://models/store"

    def __init__(self, bucket, drafts):
        self._bucket, self._drafts = bucket, drafts
        drafts.mkdir()

    def policy(self, version, without=(), **settings):
        write_policy(self._drafts / version, **settings)
        for name in {policies.LINEAR_NAME, policies.CARD_NAME} - set(without):
            self.file(f"{version}/{name}")

    def file(self, name):
        self._bucket.blob(f"store/{name}").upload_from_filename(self._drafts / name)

    def promote(self, version, **roll_out):
        point_at(self._drafts, version, **roll_out)
        self.file(policies.CHAMPION_NAME)


def copies(follower):
    return sorted(follower._place._copies)


def test_a_policy_is_copied_without_its_checkpoint(bucket, tmp_path):
    card = write_policy(tmp_path / "v1")
    for name in (policies.CARD_NAME, policies.LINEAR_NAME):
        bucket.blob(f"runs/v1/{name}").upload_from_filename(tmp_path / "v1" / name)
    bucket.blob("runs/v1/saved_model/variables/index").upload_from_string(b"deep")
    bucket.blob(f"runs/v1/{policies.CHECKPOINT_NAME}/statistics.npz").upload_from_string(b"large")
    bucket.blob("runs/v10/other").upload_from_string(b"its name begins alike")
    bucket.blob("runs/v1/../outside").upload_from_string(b"escapes")
    place = storage.place("gs://models/runs/v1/")
    folder = place.folder()
    assert policy.load(folder).card == card
    copied = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert copied == {policies.LINEAR_NAME, policies.CARD_NAME, "saved_model/variables/index"}
    assert not (folder.parent / "outside").exists()
    assert place.folder() == folder  # not copied again
    place.close()
    assert not folder.exists()
    with contextlib.closing(PolicyFollower("gs://models/runs/v1")) as follower:
        follower.start()
        assert follower.line_up.serving.card == card


def test_what_cannot_be_read_is_one_clear_line(bucket, tmp_path):
    for uri, message in [
        (
            "gs://models/nothing",
            r"gs://models/nothing is neither a policy \(it has no policy.json\) nor a policy store",
        ),
        ("gs://missing/v1", "cannot read gs://missing/v1: 404 "),
    ]:
        with pytest.raises(InputError, match=f"^policy: {message}"):
            PolicyFollower(uri)
        with pytest.raises(AssertionError) as caught, predictor(uri, tmp_path / "events"):
            pass
        said = str(caught.value).removeprefix("the predictor did not start: ")
        assert said.startswith("predictor.app: error: policy: ")
        assert said.count("\n") == 1


def test_a_store_is_followed_and_only_what_serves_is_kept(store, follower):
    follower.start()
    first = follower.line_up.serving
    assert (first.card.version, copies(follower)) == ("v1", ["v1"])
    follower.refresh()
    assert (follower.line_up.serving, follower.swaps) == (first, 0)
    store.promote("v2", candidate="v1", candidate_share=0.5)
    follower.refresh()
    assert follower.line_up.serving.card.version == "v2"
    assert follower.line_up.candidate is first  # not loaded again
    assert copies(follower) == ["v1", "v2"]
    store.promote("v2")
    follower.refresh()
    assert (copies(follower), follower.swaps) == (["v2"], 2)


def test_a_champion_that_is_not_there_or_not_whole_leaves_the_old_one_serving(store, follower):
    follower.start()
    store.promote("v3")
    with pytest.raises(InputError, match=r"^policy: gs://models/store/v3/ is not a policy \(it has no policy.json\)$"):
        follower.refresh()
    store.policy("v3", without=[policies.LINEAR_NAME], seed=3)
    for _ in range(2):
        with pytest.raises(InputError, match=r"linear.npz: is missing$"):
            follower.refresh()
    assert follower.line_up.serving.card.version == "v1"
    assert copies(follower) == ["v1", "v3"]  # not copied again until it changes
    store.file(f"v3/{policies.LINEAR_NAME}")
    follower.refresh()
    assert follower.line_up.serving.card.version == "v3"
    assert copies(follower) == ["v3"]


def test_a_store_starts_with_the_version_before_when_the_champion_is_not_there(store, follower):
    store.promote("v3", previous="v2")
    follower.start()
    assert follower.line_up.serving.card.version == "v2"
    assert follower.load_error.startswith("policy: gs://models/store/v3/ is not a policy")


def test_a_server_follows_a_store_and_goes_on_when_storage_is_away(emulators_environment, tmp_path, monkeypatch):
    with contextlib.ExitStack() as running:
        url = running.enter_context(storage_emulator(tmp_path, tmp_path / "buckets", emulators_environment))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "test-project")
        client = running.enter_context(contextlib.closing(cloud.Client()))
        store = Uploaded(client.create_bucket("models"), tmp_path / "drafts")
        store.policy("v1", seed=1)
        store.policy("v2", seed=2)
        store.promote("v1")
        with predictor(store.uri, tmp_path / "events", "--poll-seconds", "0.1") as server:
            right = {"instances": [{"observation": [1, 2, 3]}]}
            assert server.post("/predict", right).body["predictions"][0]["policy_version"] == "v1"
            store.promote("v2")
            server.wait_for(lambda health: health["policy_version"] == "v2")
            assert server.post("/predict", right).body["predictions"][0]["policy_version"] == "v2"
            store.promote("v3")
            server.wait_for(lambda health: "store/v3/ is not a policy" in (health["load_error"] or ""))
            store.policy("v3", seed=3)
            server.wait_for(lambda health: health["policy_version"] == "v3" and health["load_error"] is None)
            running.close()  # the emulator ends
            server.wait_for(lambda health: "cannot read gs://models/store" in (health["load_error"] or ""))
            assert server.get("/health").body["status"] == "degraded"
            assert b"predictor_degraded 1.0" in server.read("/metrics")
            assert server.post("/predict", right).body["predictions"][0]["policy_version"] == "v3"
            assert server.stop() == 0

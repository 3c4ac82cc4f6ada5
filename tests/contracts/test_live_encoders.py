import numpy as np
import pytest

from contracts import live_encoders, policies, policy_arrays
from contracts.errors import InputError
from contracts.live_encoders import Encoder
from contracts.policy_arrays import PolicyArrays, Scorer
from tests.linear_policies import write_policy

RANDOM = np.random.default_rng(3)
LAYERS = [
    (RANDOM.normal(size=(3, 7)).astype(np.float32), RANDOM.normal(size=7).astype(np.float32)),
    (RANDOM.normal(size=(7, 4)).astype(np.float32), RANDOM.normal(size=4).astype(np.float32)),
]
OBSERVATIONS = RANDOM.normal(size=(21, 3)).astype(np.float32)


def arrays() -> PolicyArrays:
    covariance = np.tile(np.eye(4, dtype=np.float32), (5, 1, 1))
    return PolicyArrays(LAYERS, np.zeros((5, 4), np.float32), np.zeros(5, np.float32), covariance, np.ones(5))


def test_it_encodes_as_the_policy_serves_whatever_the_batch():
    encoder = Encoder(LAYERS)
    assert (encoder.observation_dim, encoder.width) == (3, 4)
    whole = encoder.encode(OBSERVATIONS)
    np.testing.assert_array_equal(whole, Scorer(arrays()).encode(OBSERVATIONS).astype(np.float32))
    alone = np.concatenate([encoder.encode(row[np.newaxis]) for row in OBSERVATIONS])
    np.testing.assert_array_equal(whole, alone)
    assert encoder.encode(OBSERVATIONS[:0]).shape == (0, 4)


def test_the_digest_tells_encoders_apart():
    other = [(LAYERS[0][0] + 1, LAYERS[0][1]), LAYERS[1]]
    assert (
        len({live_encoders.digest([]), Encoder(LAYERS).digest, Encoder(other).digest, Encoder(LAYERS[:1]).digest}) == 4
    )
    assert live_encoders.digest([]) == ""


def test_it_is_read_from_a_policy_with_a_network(tmp_path):
    write_policy(tmp_path / "v1")
    with pytest.raises(InputError, match="must be a policy with a network, got linucb, which needs no encoder"):
        live_encoders.read(tmp_path / "v1")
    (tmp_path / "v1" / policies.LINEAR_NAME).unlink()
    policy_arrays.write(tmp_path / "v1", arrays())
    assert live_encoders.read(tmp_path / "v1").digest == Encoder(LAYERS).digest
    with pytest.raises(InputError, match="cannot be read"):
        live_encoders.read(tmp_path / "v2")

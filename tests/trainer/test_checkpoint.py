import numpy as np
import pytest

from contracts.errors import InputError
from contracts.policies import CHECKPOINT_NAME
from trainer import checkpoint
from trainer.linear import SufficientStatistics


def test_the_checkpoint_holds_the_statistics_exactly(tmp_path):
    rng = np.random.default_rng(0)
    statistics = SufficientStatistics.zeros(7, 4)
    statistics.add(rng.normal(size=(300, 4)), rng.integers(0, 6, 300), rng.normal(size=300))
    checkpoint.write(tmp_path, statistics)
    read = checkpoint.read(tmp_path)
    for name in ("a", "b", "n"):
        np.testing.assert_array_equal(getattr(read, name), getattr(statistics, name))
    (tmp_path / CHECKPOINT_NAME / checkpoint.STATISTICS_NAME).write_bytes(b"PK\x03\x04 half of it")
    for missing in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="not a checkpoint of a linear policy"):
            checkpoint.read(missing)


def test_the_same_statistics_have_the_same_bytes():
    statistics = SufficientStatistics.zeros(2, 3)
    assert checkpoint.encode(statistics) == checkpoint.encode(statistics)

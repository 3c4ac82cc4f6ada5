import msgspec
import pytest

from predictor.messages import Instance, Parameters, Prediction, PredictRequest, Slot

ID = "01a20375-ec4c-785b-98a2-17b9d72932ef"


def test_a_request_is_written_without_its_defaults():
    assert msgspec.json.encode(PredictRequest([Instance([1.0])], Parameters())) == (
        b'{"instances":[{"observation":[1.0]}],"parameters":{}}'
    )


def test_only_a_slate_lists_places():
    slot = Slot(decision_id=ID, action=1, propensity=0.5, item_id=None, title=None)
    one = Prediction(decision_id=ID, action=1, propensity=0.5, policy_version="v", item_id=None, title=None)
    assert b"slate" not in msgspec.json.encode(one)
    slate = msgspec.structs.replace(one, slate=[slot], slate_propensity=0.5)
    assert msgspec.json.decode(msgspec.json.encode(slate), type=Prediction) == slate


@pytest.mark.parametrize("size", [0, 1001])
def test_bounds_of_a_slate(size):
    with pytest.raises(msgspec.ValidationError, match="slate_size"):
        msgspec.json.decode(b'{"slate_size":%d}' % size, type=Parameters)

import msgspec
import pytest

from contracts.errors import InputError
from orchestration.cloud.configuration import load
from orchestration.cloud.target import decode_target


def test_a_target_survives_its_way_to_a_step():
    target = load("prod", "films").needed_cloud().target
    assert decode_target(msgspec.json.encode(target).decode()) == target
    assert (target.name, target.policies) == ("bandit", "gs://films-bandit/policies")


@pytest.mark.parametrize("text", ["", "{}", '{"endpoint": "bandit"}'])
def test_anything_else_is_one_line(text):
    with pytest.raises(InputError, match="vertex: a VertexTarget as JSON, got ") as raised:
        decode_target(text)
    assert "\n" not in str(raised.value)

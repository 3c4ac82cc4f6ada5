import json

import msgspec
import pytest
from starlette.exceptions import HTTPException

from predictor import bodies
from predictor.messages import Instance, Parameters, PredictRequest, RewardsRequest, SentReward

_predict = msgspec.json.Decoder(PredictRequest)
ID = "01a20375-ec4c-785b-98a2-17b9d72932ef"


def request(candidates, slate_size):
    return (
        f'{{"instances":[{{"observation":[1],"candidates":{candidates}}}],"parameters":{{"slate_size":{slate_size}}}}}'
    )


@pytest.mark.parametrize(("candidates", "slate_size"), [("[3,5]", "2"), ("[3.0,5.0]", "2.0"), ("[3,5e0]", "2.0")])
def test_integers_may_be_written_as_protobuf_writes_them(candidates, slate_size):
    decoded = bodies.decode(_predict, request(candidates, slate_size).encode())
    assert decoded == PredictRequest([Instance([1.0], None, [3, 5])], Parameters(2))
    assert [type(action) for action in decoded.instances[0].candidates] == [int, int]
    assert type(decoded.parameters.slate_size) is int


@pytest.mark.parametrize(
    ("candidates", "slate_size", "message"),
    [
        ("[3.5]", "1", "instances[0].candidates[0]: Expected `int`, got `float`, got 3.5"),
        ("[3.0,true]", "1", "instances[0].candidates[1]: Expected `int`, got `bool`, got True"),
        ('[3.0,"3"]', "1", "instances[0].candidates[1]: Expected `int`, got `str`, got '3'"),
        ("[-1.0]", "1", "instances[0].candidates[0]: Expected `int` >= 0, got -1.0"),
        ("[1e15]", "1", "instances[0].candidates[0]: Expected `int` <= 2147483647, got 1000000000000000.0"),
        ("[]", "2.5", "parameters.slate_size: Expected `int`, got `float`, got 2.5"),
        ("[]", "0.0", "parameters.slate_size: Expected `int` >= 1, got 0.0"),
        ("[]", '"2"', "parameters.slate_size: Expected `int`, got `str`, got '2'"),
    ],
)
def test_what_is_no_integer_is_refused_with_field_fact_and_value(candidates, slate_size, message):
    with pytest.raises(HTTPException) as refused:
        bodies.decode(_predict, request(candidates, slate_size).encode())
    assert (refused.value.status_code, refused.value.detail) == (400, message)


def test_observations_stay_floats_beside_integers_written_as_doubles():
    body = b'{"instances":[{"observation":[1.0,1e30,-0.5,7],"candidates":[1.0]}]}'
    (instance,) = bodies.decode(_predict, body).instances
    assert instance.observation == [1.0, 1e30, -0.5, 7.0]
    assert {type(number) for number in instance.observation} == {float}


def test_a_reward_may_be_an_integer():
    body = json.dumps({"rewards": [{"decision_id": ID, "reward": 4}]}).encode()
    (reward,) = bodies.decode(msgspec.json.Decoder(RewardsRequest), body).rewards
    assert reward == SentReward(ID, 4.0)
    assert type(reward.reward) is float


def test_answers_are_json():
    response = bodies.answer(Parameters(3), 202, {"retry-after": "1"})
    assert (response.status_code, response.body, response.media_type) == (202, b'{"slate_size":3}', "application/json")
    assert response.headers["retry-after"] == "1"

import asyncio
import gzip
import json
import tracemalloc

import msgspec
import pytest
import zstandard
from fastapi import Request
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
        ("[3.5]", "1", "instances[0].candidates[0]: Expected `int | str`, got `float`, got 3.5"),
        ("[3.0,true]", "1", "instances[0].candidates[1]: Expected `int | str`, got `bool`, got True"),
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


def read(body, headers, max_bytes=1000):
    """What is read of a request that arrives in one piece."""

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    names = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "headers": names, "state": {}}
    return asyncio.run(bodies.read(Request(scope, receive), max_bytes, 1.0))


def refused(body, headers, max_bytes=1000):
    with pytest.raises(HTTPException) as caught:
        read(body, headers, max_bytes)
    return caught.value.status_code, caught.value.detail


COMPRESS = {"gzip": gzip.compress, "zstd": zstandard.compress, "identity": bytes}


@pytest.mark.parametrize("encoding", COMPRESS)
def test_a_compressed_body_is_read(encoding):
    body = request("[3]", 2).encode() * 5
    assert read(COMPRESS[encoding](body), {"content-encoding": encoding.upper()}) == body


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_body_that_grows_beyond_the_limit_is_refused_without_its_bytes(encoding):
    bomb = COMPRESS[encoding](bytes(200_000_000))
    tracemalloc.start()
    try:
        status, reason = refused(bomb, {"content-encoding": encoding}, max_bytes=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
    assert (status, reason) == (413, "body: must be at most 1000000 bytes when decompressed")


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_body_that_is_not_what_it_claims_is_refused(encoding):
    assert refused(b"{}", {"content-encoding": encoding})[0] == 400
    assert refused(b"", {"content-encoding": encoding})[0] == 400
    broken = COMPRESS[encoding](b"x" * 500)[:-3]
    assert refused(broken, {"content-encoding": encoding}) == (400, f"body: is not {encoding}: it breaks off")


def test_another_encoding_is_refused_by_name():
    assert refused(b"{}", {"content-encoding": "br"}) == (415, "content-encoding: must be gzip or zstd, got 'br'")


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/vnd.x+json"])
def test_json_by_any_of_its_names_is_read(kind):
    assert read(b"{}", {"content-type": kind}) == b"{}"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
def test_another_content_type_is_refused(kind):
    assert refused(b"{}", {"content-type": kind}) == (415, f"content-type: must be application/json, got {kind!r}")

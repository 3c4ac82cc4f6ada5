import re

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.errors import InputError
from contracts.features import MAX_DIM, Category, Context, Encoder, FeatureSpec, Hashed, Number, read_spec

SPEC = FeatureSpec(
    features=[
        Number(name="hour", mean=12, scale=6),
        Category(name="device", values=["phone", "desktop"]),
        Category(name="plan", values=["free", "paid"], unseen="refuse"),
        Hashed(name="city", buckets=4),
    ]
)
CONTEXT = {"hour": 9, "device": "phone", "plan": "paid", "city": "Graz"}


def test_each_feature_takes_its_places():
    encoded = Encoder(SPEC).encode(CONTEXT)
    assert len(encoded) == SPEC.dim == len(SPEC.places) == 1 + 1 + 3 + 2 + 4
    assert encoded[:7] == [1.0, -0.5, 1.0, 0.0, 0.0, 0.0, 1.0]
    assert sorted(encoded[7:]) == [0.0, 0.0, 0.0, 1.0]
    assert SPEC.places[:5] == ["constant", "hour", "device=phone", "device=desktop", "device: others"]
    assert SPEC.places[-1] == "city #3"


def test_the_hash_is_the_same_in_every_process():
    places = [Encoder(SPEC).encode(CONTEXT | {"city": city})[7:].index(1.0) for city in ("Graz", "Wien", "Linz", "")]
    assert places == [3, 0, 2, 0]


def test_a_category_that_was_never_seen_takes_the_bucket_of_others():
    assert Encoder(SPEC).encode(CONTEXT | {"device": "tv"})[2:5] == [0.0, 0.0, 1.0]


def test_integers_and_truth_values_are_categories():
    spec = FeatureSpec(constant=False, features=[Category(name="a", values=["9", "true"], unseen="refuse")])
    encoder = Encoder(spec)
    assert encoder.encode({"a": 9}) == encoder.encode({"a": 9.0}) == encoder.encode({"a": "9"}) == [1.0, 0.0]
    assert encoder.encode({"a": True}) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hour": "late"}, "context.hour: a number expected, got 'late'"),
        ({"hour": True}, "context.hour: a number expected, got True"),
        ({"hour": 1e300}, "context.hour: a number that fits into float32 when scaled expected, got 1e+300"),
        ({"hour": float("nan")}, "context.hour: a number that fits into float32 when scaled expected, got nan"),
        ({"plan": "gold"}, "context.plan: one of free, paid expected, got 'gold'"),
        ({"city": 1.5}, "context.city: text, true or false, or an integer expected, got 1.5"),
        ({"wether": 3}, "context.wether: one of city, device, hour, plan expected, got 3"),
    ],
)
def test_a_wrong_value_is_named(change, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Encoder(SPEC).encode(CONTEXT | change)


def test_a_missing_feature_is_named():
    without = {name: value for name, value in CONTEXT.items() if name != "device"}
    with pytest.raises(InputError, match=r"^x\.device: one of phone, desktop expected, got nothing$"):
        Encoder(SPEC).encode(without, "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"features": []', "truncated"),
        ('{"features": [{"kind": "number", "name": "a"}, {"kind": "number", "name": "a"}]}', "differ, got a twice"),
        ('{"features": [{"kind": "category", "name": "a", "values": ["b", "b"]}]}', "values of a must differ"),
        ('{"features": [{"kind": "category", "name": "a", "values": ["", ""]}]}', "values of a must differ"),
        ('{"features": [{"kind": "number", "name": "a", "scale": 0}]}', "Expected `float` > 0.0"),
        ('{"features": [{"kind": "number", "name": "a b"}]}', "matching regex"),
        ('{"features": [{"kind": "count", "name": "a"}]}', "count"),
        ('{"features": [{"kind": "number", "name": "a", "men": 1}]}', "unknown field `men`"),
        ('{"features": [], "constant": false}', "must take 1 to"),
        (
            '{"features": [{"kind": "hashed", "name": "a", "buckets": 65536}]}',
            f"must take 1 to {MAX_DIM} places, got 65537",
        ),
    ],
)
def test_a_wrong_spec_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "features.json"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_spec(path)
    assert str(caught.value).startswith(f"features: {path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_spec_is_named(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_spec(tmp_path / "features.json")


names = st.text("abcXYZ_", min_size=1, max_size=8)
texts = st.text(max_size=20)
numbers = st.floats(-1e30, 1e30)


@st.composite
def specs_and_contexts(draw: st.DrawFn) -> tuple[FeatureSpec, dict[str, bool | float | str]]:
    features, context = [], {}
    for name in draw(st.lists(names, min_size=1, max_size=6, unique=True)):
        match draw(st.integers(0, 2)):
            case 0:
                scale = draw(st.floats(1e-5, 1e10))
                features.append(Number(name=name, mean=draw(st.floats(-1e10, 1e10)), scale=scale))
                context[name] = draw(numbers)
            case 1:
                features.append(Category(name=name, values=draw(st.lists(texts, min_size=1, max_size=5, unique=True))))
                context[name] = draw(st.one_of(texts, st.booleans(), st.integers(-100, 100)))
            case _:
                features.append(Hashed(name=name, buckets=draw(st.integers(1, 9))))
                context[name] = draw(texts)
    return FeatureSpec(constant=draw(st.booleans()), features=features), context


# On a busy machine making examples takes longer than the library expects.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@CALM
@given(specs_and_contexts())
def test_an_observation_is_float32_and_survives_the_way_through_json(made):
    spec, context = made
    encoded = Encoder(spec).encode(context)
    assert len(encoded) == spec.dim == len(spec.places)
    assert np.array_equal(np.array(encoded, np.float32).astype(np.float64), encoded)
    again = msgspec.json.decode(msgspec.json.encode(spec), type=FeatureSpec)
    assert again == spec
    sent = msgspec.json.decode(msgspec.json.encode(context), type=Context)
    assert Encoder(again).encode(dict(reversed(sent.items()))) == encoded
    categories = sum(not isinstance(feature, Number) for feature in spec.features)
    ones = [value for value, place in zip(encoded, spec.places, strict=True) if place not in context]
    assert sorted(ones) == [0.0] * (len(ones) - categories - spec.constant) + [1.0] * (categories + spec.constant)


@CALM
@given(st.dictionaries(names, st.one_of(texts, st.booleans(), st.floats()), max_size=6))
def test_whatever_is_sent_is_encoded_or_refused_in_one_line(context):
    try:
        encoded = Encoder(SPEC).encode(CONTEXT | context)
    except InputError as error:
        assert str(error).startswith("context.")
        assert "\n" not in str(error)
    else:
        assert len(encoded) == SPEC.dim

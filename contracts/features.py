"""The feature spec: how the named facts of a request become the observation, a vector [D].

A spec lists the features in order. Each takes its places in the observation; with `constant`, a 1 comes first.

    number    one place: (value - mean) / scale
    category  one place per value, 1 at the value that was given; with unseen "bucket" one more place for all others
    hashed    `buckets` places, 1 at the one that a hash of the value falls into: for values that are too many to list

A spec is part of a policy's card. The predictor encodes the context of a request by it and logs the observation, so the
trainer and the audit read the same numbers that the policy decided by.
"""

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, assert_never

import msgspec
from msgspec import Meta

from contracts.errors import InputError
from contracts.records import FLOAT32_MAX, UNREADABLE, one_line

MAX_DIM = 65536  # as in contracts.records.Observation
_SHOWN = 10  # names in an error

FeatureName = Annotated[
    str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$", max_length=64, description="Name of the feature in a request.")
]
CategoryValue = Annotated[str, Meta(max_length=128)]
FeatureValue = bool | float | CategoryValue
Context = Annotated[
    dict[FeatureName, FeatureValue],
    Meta(max_length=1024, description="The observation by names: the value of each feature in the policy's spec."),
]


class Number(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="number"):
    """A feature that is a number. It should be scaled so that its values are around -1 to 1."""

    name: FeatureName
    mean: Annotated[float, Meta(ge=-FLOAT32_MAX, le=FLOAT32_MAX, description="Is subtracted.")] = 0.0
    scale: Annotated[float, Meta(gt=0, le=FLOAT32_MAX, description="Is divided by, after that.")] = 1.0


class Category(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="category"):
    """A feature that is one of some values: text, true or false, or an integer, which counts as its digits."""

    name: FeatureName
    values: Annotated[list[CategoryValue], Meta(min_length=1, max_length=MAX_DIM)]
    unseen: Annotated[
        Literal["bucket", "refuse"],
        Meta(description="What becomes of another value: it takes the bucket for others, or the request is refused."),
    ] = "bucket"


class Hashed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="hashed"):
    """A category whose values are not listed. Values that fall into the same bucket look alike."""

    name: FeatureName
    buckets: Annotated[int, Meta(ge=1, le=MAX_DIM)]


Feature = Number | Category | Hashed


class FeatureSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The features of a policy, in the order of their places. Raises ValueError for a name or a value that comes twice."""

    version: Annotated[int, Meta(ge=1, description="Increase it with each change.")] = 1
    constant: Annotated[bool, Meta(description="Whether a 1 comes first, as linear policies need it.")] = True
    features: Annotated[list[Feature], Meta(max_length=1024)]

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        if (repeated := _repeated(names)) is not None:
            raise ValueError(f"features: names must differ, got {repeated} twice")
        for feature in self.features:
            if isinstance(feature, Category) and (repeated := _repeated(feature.values)) is not None:
                raise ValueError(f"features: values of {feature.name} must differ, got {repeated} twice")
        if not 1 <= self.dim <= MAX_DIM:
            raise ValueError(f"features: must take 1 to {MAX_DIM} places, got {self.dim}")

    @property
    def dim(self) -> int:
        """D, the length of an observation."""
        return int(self.constant) + sum(width(feature) for feature in self.features)

    @property
    def places(self) -> list[str]:
        """What each number of an observation stands for, such as `hour`, `device=phone`, `device: others` or `city #3`."""
        return ["constant"] * self.constant + [place for feature in self.features for place in _places(feature)]


class Encoder:
    """Encodes contexts by one spec."""

    def __init__(self, spec: FeatureSpec) -> None:
        self._spec = spec
        self._names = frozenset(feature.name for feature in spec.features)
        self._pack = struct.Struct(f"{spec.dim}f")
        self._starts: list[tuple[int, Feature, dict[str, int]]] = []
        place = int(spec.constant)
        for feature in spec.features:
            known = {value: i for i, value in enumerate(feature.values)} if isinstance(feature, Category) else {}
            self._starts.append((place, feature, known))
            place += width(feature)

    def encode(self, context: Mapping[str, FeatureValue], where: str = "context") -> list[float]:
        """The observation [D] of `context`, rounded to float32, so that it is the same wherever it is read.

        Raises InputError `<where>.<feature>: <what is wanted>, got <value>` for a feature that is missing or unknown, a
        value of another type, a number that does not fit, and a category that the spec refuses.
        """
        if unknown := context.keys() - self._names:
            name = min(unknown)
            raise InputError(f"{where}.{name}: one of {_some(self._names)} expected, got {_shown(context[name])}")
        values = [0.0] * self._spec.dim
        if self._spec.constant:
            values[0] = 1.0
        for start, feature, known in self._starts:
            at = f"{where}.{feature.name}"
            if feature.name not in context:
                raise InputError(f"{at}: {_wanted(feature)} expected, got nothing")
            place, value = _placed(feature, known, context[feature.name], at)
            values[start + place] = value
        return list(self._pack.unpack(self._pack.pack(*values)))


def width(feature: Feature) -> int:
    """How many places of the observation a feature takes."""
    match feature:
        case Number():
            return 1
        case Category():
            return len(feature.values) + (feature.unseen == "bucket")
        case Hashed():
            return feature.buckets
        case _:
            assert_never(feature)


def _places(feature: Feature) -> list[str]:
    match feature:
        case Number():
            return [feature.name]
        case Category():
            others = [f"{feature.name}: others"] if feature.unseen == "bucket" else []
            return [*(f"{feature.name}={value}" for value in feature.values), *others]
        case Hashed():
            return [f"{feature.name} #{bucket}" for bucket in range(feature.buckets)]
        case _:
            assert_never(feature)


def read_spec(path: Path) -> FeatureSpec:
    """The spec in a JSON file. Raises InputError that names the file and the fact."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=FeatureSpec)
    except OSError as error:
        raise InputError(f"features: {path}: {error.strerror}") from None
    except UNREADABLE as error:
        raise InputError(f"features: {path}: {one_line(str(error))}") from None


def _placed(feature: Feature, known: dict[str, int], value: FeatureValue, at: str) -> tuple[int, float]:
    """The place, from the feature's first, that is not 0, and its value."""
    if isinstance(feature, Number):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{at}: a number expected, got {_shown(value)}")
        scaled = (value - feature.mean) / feature.scale
        if not -FLOAT32_MAX <= scaled <= FLOAT32_MAX:  # not a number fails as well
            raise InputError(f"{at}: a number that fits into float32 when scaled expected, got {_shown(value)}")
        return 0, scaled
    text = _category(value, at)
    if isinstance(feature, Hashed):
        digest = hashlib.blake2b(f"{feature.name}={text}".encode(errors="surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % feature.buckets, 1.0
    place = known.get(text)
    if place is None:
        if feature.unseen == "refuse":
            raise InputError(f"{at}: {_wanted(feature)} expected, got {_shown(value)}")
        place = len(feature.values)
    return place, 1.0


def _category(value: FeatureValue, at: str) -> str:
    """The value as the text by which categories differ: 9 and 9.0 are "9", true is "true"."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float) and float(value).is_integer():
        return str(int(value))
    raise InputError(f"{at}: text, true or false, or an integer expected, got {_shown(value)}")


def _wanted(feature: Feature) -> str:
    match feature:
        case Number():
            return "a number"
        case Category():
            return f"one of {_some(feature.values)}"
        case Hashed():
            return "a category"
        case _:
            assert_never(feature)


def _some(names: "frozenset[str] | list[str]") -> str:
    listed = sorted(names) if isinstance(names, frozenset) else names
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return (", ".join(listed[:_SHOWN]) or "no feature") + more


def _shown(value: object) -> str:
    return one_line(f"{value!r:.80}")


def _repeated(names: list[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]

from pathlib import Path

import pytest

from contracts.errors import InputError
from predictor.settings import LoggingSettings, ServerLimits, parse

RIGHT = ["--policy", "p", "--events", "e"]


def test_defaults_are_those_of_the_structs():
    settings, logging_settings = parse(RIGHT, {}, None)
    assert (settings.policy, settings.events, settings.host, settings.port) == ("p", Path("e"), "127.0.0.1", 8080)
    assert (settings.health_route, settings.predict_route) == ("/health", "/predict")
    assert (settings.limits, logging_settings) == (ServerLimits(), LoggingSettings())


def test_a_flag_overrides_its_variable_of_vertex():
    environment = {
        "AIP_STORAGE_URI": "gs://models/v1",
        "AIP_HTTP_PORT": "8081",
        "AIP_HEALTH_ROUTE": "/v1/health",
        "AIP_PREDICT_ROUTE": "/v1/predict",
    }
    settings, logging_settings = parse(["--events", "e"], environment, None)
    assert (settings.policy, settings.host, settings.port) == ("gs://models/v1", "0.0.0.0", 8081)
    assert (settings.health_route, settings.predict_route) == ("/v1/health", "/v1/predict")
    assert logging_settings.log_format == "json"
    settings, logging_settings = parse([*RIGHT, "--port", "0", "--log-format", "text"], environment, None)
    assert (settings.policy, settings.port, logging_settings.log_format) == ("p", 0, "text")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "65536"], "--port: must be 0 to 65535, got 65536"),
        (["--body-seconds", "inf"], "--body-seconds: must be finite, got 'inf'"),
        (["--body-seconds", "nan"], "--body-seconds: .*got 'nan'"),
        (["--drain-seconds", "-1"], "--drain-seconds: Expected `float` > 0.0, got '-1'"),
        (["--max-instances", "1.5"], "--max-instances: Expected `int`, got '1.5'"),
        (["--on-overload", "wait"], "argument --on-overload: invalid choice: 'wait'.*"),
        (["--personalizer", "on"], "argument --personalizer: invalid choice: 'on'.*"),
        (["--cors-origin", "*"], r"--cors-origin: must be http\(s\)://host or .*, got '\*'"),
        (["--cors-origin", "https://a.example/"], "--cors-origin: must be .*, got 'https://a.example/'"),
        (["--cors-origin", "https://A.example"], "--cors-origin: must be .*in lower case, got"),
        (["--api-key-file", "/nowhere"], "--api-key-file: cannot read /nowhere"),
    ],
)
def test_wrong_flags(flags, message):
    with pytest.raises(InputError, match=f"^{message}"):
        parse([*RIGHT, *flags], {}, None)

"""The metadata of the flex templates, derived from the jobs' own flags.

python -m beam_jobs.templates templates/            write <job>.json for each job
python -m beam_jobs.templates templates/ --check    write nothing; exit with 1 when a file differs
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from beam_jobs import generated
from beam_jobs.places import BIGQUERY_PREFIX, DATASET, SUBSCRIPTION_PREFIX
from beam_jobs.pubsub import SUBSCRIPTION, TOPIC

JOBS = ("generate_movielens", "ingest_events", "export_trajectories", "learn_live", "replay_dead_letters")
# Beam's flags that a run of a template needs, besides those that the launcher adds.
BEAM_PARAMETERS = [
    {
        "name": "sdk_container_image",
        "label": "Worker image",
        "helpText": "The template's own image, which is launcher and worker.",
        "isOptional": True,
        "paramType": "TEXT",
    }
]
PARAMETER_TYPES = {
    ("ingest_events", "dead_letter_topic"): "PUBSUB_TOPIC",
}
_BUCKET_FOLDER = "gs://[^/]+/.+"
_WAREHOUSE = f"^{BIGQUERY_PREFIX}{DATASET}$"
# Of the locations that a flag accepts, those that a job on Dataflow can use.
PATTERNS = {
    ("generate_movielens", "ratings"): f"^({_BUCKET_FOLDER}|tfds:.+|sample)$",
    ("generate_movielens", "events"): f"^{_BUCKET_FOLDER}$",
    ("generate_movielens", "catalogue"): f"^{_BUCKET_FOLDER}$",
    ("ingest_events", "events"): f"^({SUBSCRIPTION_PREFIX}{SUBSCRIPTION}|{_BUCKET_FOLDER})$",
    ("ingest_events", "warehouse"): _WAREHOUSE,
    ("ingest_events", "dead_letter_topic"): f"^{TOPIC}$",
    ("export_trajectories", "warehouse"): _WAREHOUSE,
    ("export_trajectories", "windows"): f"^{_BUCKET_FOLDER}$",
    ("learn_live", "events"): f"^{SUBSCRIPTION_PREFIX}{SUBSCRIPTION}$",
    ("learn_live", "windows"): f"^{_BUCKET_FOLDER}$",
    ("learn_live", "live"): f"^{_BUCKET_FOLDER}$",
    ("replay_dead_letters", "warehouse"): _WAREHOUSE,
}
# A template starts one job and ends, so it cannot follow windows.
NOT_IN_A_TEMPLATE = {("export_trajectories", "follow")}
# The streaming jobs, each with the mode that it needs: rows that are stored twice are removed when they are read, while a
# decision that is joined twice would be taken for a duplicate and counted as one.
STREAMING = {"ingest_events": "AT_LEAST_ONCE", "learn_live": "EXACTLY_ONCE"}


def metadata(job: str) -> dict[str, Any]:
    """`TemplateMetadata` of a job, as JSON: a parameter for each flag that a template can have, with the flag's name."""
    module = importlib.import_module(f"beam_jobs.{job}")
    parser = module.parser()
    found: dict[str, Any] = {
        "name": job,
        "description": " ".join(parser.description.split("\n\n")[0].split()),
        "parameters": [
            _parameter(job, flag)
            for flag in parser._actions
            if flag.dest != "help" and (job, flag.dest) not in NOT_IN_A_TEMPLATE
        ]
        + BEAM_PARAMETERS,
    }
    if job in STREAMING:
        found |= {
            "streaming": True,
            "supportsAtLeastOnce": STREAMING[job] == "AT_LEAST_ONCE",
            "supportsExactlyOnce": True,
            "defaultStreamingMode": STREAMING[job],
        }
    return found


def _parameter(job: str, flag: argparse.Action) -> dict[str, Any]:
    help_text = (flag.help or "").replace("%%", "%")
    parameter: dict[str, Any] = {
        "name": flag.dest,
        "label": flag.dest.replace("_", " ").capitalize(),
        "helpText": help_text[:1].upper() + help_text[1:] + ".",
        "isOptional": not flag.required,
        "paramType": PARAMETER_TYPES.get((job, flag.dest), "TEXT"),
    }
    pattern = PATTERNS.get((job, flag.dest)) or getattr(flag.type, "pattern", None)
    if flag.choices:
        pattern = f"^({'|'.join(flag.choices)})$"
        parameter |= {"paramType": "ENUM", "enumOptions": [{"value": choice} for choice in flag.choices]}
    if pattern:
        parameter["regexes"] = [pattern]
    return parameter


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or checks the files."""
    return generated.main("templates", __doc__, {f"{job}.json": metadata(job) for job in JOBS}, "the jobs' flags", argv)


if __name__ == "__main__":
    sys.exit(main())

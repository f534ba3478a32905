# videorft_jax for NVIDIA GPUs, with the tested versions. The host needs the driver and the NVIDIA container toolkit.
#
#   docker build -f docker/gpu.Dockerfile -t videorft:gpu .
#   docker run --gpus=all --shm-size=8g -v /data:/data videorft:gpu grpo --config=grpo_7b --workdir=/data/runs/grpo_7b ...
FROM python:3.12-slim-bookworm

WORKDIR /opt/videorft
RUN pip install --no-cache-dir uv==0.9.5
COPY requirements.lock setup.py pyproject.toml README.md LICENSE ./
COPY configs configs
COPY videorft_jax videorft_jax
RUN uv pip install --system --no-cache --constraint requirements.lock ".[gpu,serve,curate]" \
    && useradd --create-home --uid 1000 videorft

USER 1000
WORKDIR /home/videorft
ENTRYPOINT ["videorft"]
CMD ["doctor"]

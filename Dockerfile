# A GPU node: CUDA PyTorch is in the base image; everything else comes from bounded requirements.
FROM pytorch/pytorch:2.11.0-cuda12.8-cudnn9-runtime

# LightGBM links against the system's OpenMP.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/rewarm
COPY pyproject.toml README.md ./
COPY trainer trainer
COPY models models
COPY conf conf
# From 2.10 on the image's torch lives in the system's Python, which pip leaves alone unless told otherwise.
RUN PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir ".[downstream]"

COPY scripts scripts
ENV WANDB_MODE=offline
ENTRYPOINT ["rewarm-retrain"]
CMD ["--help"]

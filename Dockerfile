# A GPU node: CUDA PyTorch is in the base image; everything else comes from bounded requirements.
FROM pytorch/pytorch:2.11.0-cuda12.8-cudnn9-runtime

WORKDIR /opt/rewarm
COPY pyproject.toml README.md ./
COPY trainer trainer
COPY models models
COPY conf conf
RUN python -m pip install --no-cache-dir ".[downstream]"

COPY scripts scripts
ENV WANDB_MODE=offline
ENTRYPOINT ["rewarm-retrain"]
CMD ["--help"]

# With CUDA:    docker build -t crkd .
# For the CPU:  docker build -t crkd --build-arg TORCH_INDEX=URL .
# URL is the package index of PyTorch's CPU builds, which PyTorch's installation page names.
FROM python:3.12-slim
ARG TORCH_INDEX=

WORKDIR /opt/crkd
# PyTorch first: this layer is large, and is built again only if the versions change.
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch

COPY pyproject.toml README.md LICENSE ./
COPY crkd_cli ./crkd_cli
COPY configs ./configs
COPY splits ./splits
RUN pip install --no-cache-dir -c constraints.txt ".[dicom,pretrained]"

# Libraries ask for both, and a user of `docker run --user` has neither.
ENV HOME=/tmp USER=crkd
WORKDIR /work
ENTRYPOINT ["crkd"]
CMD ["--help"]

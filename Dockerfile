# The backsolve service. Two images from one file:
#   docker build --target cpu  --build-arg TORCH_INDEX=<PyTorch's CPU-only index> -t backsolve:cpu .
#   docker build --target cuda -t backsolve:cuda .
# Only instructions that every builder knows are used (no heredocs, no COPY --link). The last stage is the CPU image.
ARG BASE=python:3.11-slim-bookworm

# --- a virtual environment with the pinned dependencies that both images share -------------------------------------
# hadolint ignore=DL3006
FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/backsolve/bin:$PATH
RUN python3 -m venv /opt/backsolve
COPY constraints.txt /src/

# --- CPU -----------------------------------------------------------------------------------------------------------
FROM build AS build-cpu
# Empty: the usual index, whose torch brings the CUDA libraries along (several GB). PyTorch's CPU-only index avoids that.
ARG TORCH_INDEX=""
# torch has a layer to itself: it is most of the bytes, and sources change more often than its pin. It comes alone
# (--no-deps), so that the index named here is the source of nothing else.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=cache,target=/root/.cache/pip \
    pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --no-deps --constraint /src/constraints.txt torch
COPY client /src/client
COPY service /src/service
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint /src/constraints.txt /src/client /src/service && pip check

# --- what both images have besides the environment -----------------------------------------------------------------
# hadolint ignore=DL3006
FROM ${BASE} AS runtime
# No command runs in this stage, so the image holds the base, the environment and nothing of the build. The user has a
# number and no entry in /etc/passwd, hence HOME and USER. Nothing is written below /: bytecode was compiled when the
# environment was built. glibc is told to keep buffers of a few MB instead of returning and faulting them in again on
# every call (1.7-2.5x at 1-8 MB).
ENV PATH=/opt/backsolve/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=backsolve \
    MALLOC_MMAP_THRESHOLD_=33554432 \
    MALLOC_TRIM_THRESHOLD_=4000000000 \
    BACKSOLVE_HOST=0.0.0.0 \
    BACKSOLVE_HTTP_PORT=8080 \
    BACKSOLVE_GRPC_PORT=50051
# BACKSOLVE_ALLOW_ANONYMOUS is left out on purpose: a container on an open network refuses to start until somebody has
# said that this is meant. compose.yaml says so, because it publishes on 127.0.0.1 only.
WORKDIR /tmp
USER 10001:10001
EXPOSE 8080 50051
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["backsolve-healthcheck"]
ENTRYPOINT ["backsolve-service"]

FROM runtime AS cpu
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="backsolve" \
      org.opencontainers.image.description="Differentiable linear solves, served over gRPC and REST (CPU)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build-cpu /opt/backsolve /opt/backsolve

# --- CUDA: the wheels bring the CUDA libraries, so the base image stays the same -----------------------------------
FROM build AS build-cuda
# Empty: the usual index, whose torch is a CUDA build.
ARG TORCH_CUDA_INDEX=""
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=cache,target=/root/.cache/pip \
    pip install ${TORCH_CUDA_INDEX:+--index-url "$TORCH_CUDA_INDEX"} --no-deps --constraint /src/constraints.txt torch
COPY client /src/client
COPY service /src/service
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint /src/constraints.txt /src/client "/src/service[cuda]" && pip check \
 && python3 -c "import torch; assert torch.version.cuda, 'this torch has no CUDA: name another TORCH_CUDA_INDEX'"

FROM runtime AS cuda
ARG VERSION=unknown
ARG REVISION=unknown
ENV BACKSOLVE_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
LABEL org.opencontainers.image.title="backsolve" \
      org.opencontainers.image.description="Differentiable linear solves, served over gRPC and REST (CUDA)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build-cuda /opt/backsolve /opt/backsolve

FROM cpu AS default

# syntax=docker/dockerfile:1
# The gateway with its two bundled models.
#
#     docker build -t sluice-gateway .                                       on a CPU, about 1 GB
#     docker build -t sluice-gateway:cuda --build-arg TORCH_BACKEND=cu130 .  with CUDA, several GB
#
# TORCH_BACKEND is what uv calls it: cpu, cu126, cu130, ...: it picks the build of PyTorch.

FROM python:3.12-slim AS build
ARG TORCH_BACKEND=cpu
ARG TORCH=torch==2.13.0
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 VIRTUAL_ENV=/opt/sluice
RUN pip install --no-cache-dir uv && uv venv /opt/sluice
# What it needs first, by itself: this layer stays while the code changes.
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --torch-backend "$TORCH_BACKEND" "$TORCH" && \
    uv pip install --torch-backend "$TORCH_BACKEND" "$TORCH" -r pyproject.toml \
      --extra fast --extra semantic --extra traces
COPY gateway gateway
COPY cache cache
COPY cascade cascade
COPY engine engine
COPY radix radix
COPY demo demo
RUN uv pip install --no-deps -e .

FROM python:3.12-slim
# Triton compiles a small launcher at its first kernel, on the CUDA variant alone.
ARG TORCH_BACKEND=cpu
RUN if [ "$TORCH_BACKEND" != cpu ]; then \
      apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && \
      rm -rf /var/lib/apt/lists/*; \
    fi
RUN useradd --system --uid 10001 --home-dir /var/lib/sluice --create-home sluice
COPY --from=build /opt/sluice /opt/sluice
COPY --from=build /app /app
ENV PATH=/opt/sluice/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    TRITON_CACHE_DIR=/tmp/triton NUMBA_CACHE_DIR=/tmp/numba
WORKDIR /var/lib/sluice
USER sluice
# The port inside is the variable's, whatever `port` in the settings says, so that the health check
# asks where the server listens. Another: docker run -e SLUICE_SERVER__PORT=9000, and not --port.
ENV SLUICE_SERVER__PORT=8080
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['SLUICE_SERVER__PORT'] + '/healthz', timeout=2)"]
ENTRYPOINT ["sluice"]
CMD ["serve", "--config", "/etc/sluice/sluice.toml"]

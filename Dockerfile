# The attention service in an image: no torch, no compiler, no pip, no root; a read-only file system will do.
#
#   docker build -t attention-service .
#   docker run --read-only -p 127.0.0.1:8080:8080 -p 127.0.0.1:50051:50051 attention-service
#
# For an NVIDIA GPU (onnxruntime-gpu wants CUDA 13 and cuDNN 9; never run on one: docs/gpu.md):
#
#   docker build -t attention-service:gpu --build-arg EXTRA=server-gpu \
#     --build-arg BASE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 .

ARG BASE=python:3.11-slim-bookworm

# An interpreter with venv, which a base without one is given from its distribution; and nghttp2, which speaks HTTP/2.
FROM ${BASE} AS base
RUN python3 -c "import ensurepip, venv" 2>/dev/null || interpreter="python3 python3-venv"; \
    apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends libnghttp2-14 ${interpreter:-} \
    && rm -rf /var/lib/apt/lists/*

# What the service stands on, in a layer of its own: a new version of the service is a small one. Each file has to have a
# hash that is locked, wherever it is fetched from. What serving never loads of it goes, where it is large: onnxruntime's
# second copy of itself, for C programs, and its tools; NumPy's tools and what is read by compilers; source maps and other
# builds of the viewer.
FROM base AS dependencies
ARG EXTRA=server
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY deploy/locks /locks
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --quiet --require-hashes --no-deps --requirement /locks/build.lock \
    && python3 -m venv --without-pip /opt/venv \
    && /opt/build/bin/pip --python /opt/venv/bin/python install --no-compile --require-hashes --no-deps \
      --requirement "/locks/${EXTRA}.lock" \
    && install -D -m 644 "/locks/${EXTRA}.cdx.json" /opt/venv/share/sbom/attention-service.cdx.json
RUN cd /opt/venv/lib/python3*/site-packages \
    && rm -rf onnxruntime/capi/libonnxruntime.so.* \
      onnxruntime/backend onnxruntime/datasets onnxruntime/quantization onnxruntime/tools onnxruntime/transformers \
      numpy/f2py numpy/distutils numpy/_core/include numpy/_core/lib numpy/random/lib \
    && find . -type d -name tests -prune -exec rm -rf {} + \
    && find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' \) -delete \
    && find swagger_ui_bundle -type f -name '*.js*' ! -name swagger-ui-bundle.js -delete \
    && find swagger_ui_bundle -type f -name '*.map' -delete

# The service itself, its embedded models inside, as files to lay over the dependencies.
FROM dependencies AS service
WORKDIR /build
COPY . .
RUN /opt/build/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/build/bin/pip --python /opt/venv/bin/python install --quiet --no-compile --no-deps --root /service dist/*.whl

FROM base
LABEL org.opencontainers.image.title="attention-service" \
      org.opencontainers.image.description="Attention as a service: outputs and attention weights over gRPC and REST" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=service /service /
ENV PATH=/opt/venv/bin:$PATH PYTHONPYCACHEPREFIX=/opt/bytecode
# The service starts once, and stops. So what cannot start fails here, and the bytecode of all that it loads stays, of the
# standard library too (the official base has none): a start on a file system that it cannot write compiles nothing.
RUN ["python", "-c", "import attention_server.probe, subprocess; \
  start = ['attention-server', '--device=cpu', '--rest-port=0', '--grpc-port=0']; \
  server = subprocess.Popen(start, stdout=subprocess.PIPE); \
  server.stdout.readline(); server.terminate(); raise SystemExit(server.wait())"]
# A published port comes in by the container's own network, so it listens there, and warns of it until it is given tokens.
ENV PYTHONDONTWRITEBYTECODE=1 ATTENTION_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8080 50051
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-m", "attention_server.probe"]
ENTRYPOINT ["attention-server"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"

# A worker on NVIDIA's TensorRT-LLM release image. NOT BUILT AND NOT RUN: the engine `tensorrt_llm` comes with a later
# issue, and until then the worker in this image refuses to start and says so. The image has not been pulled either.
# Build it from the root of the repository (docker-compose.yml does, with --profile gpu).
ARG TENSORRT_LLM_VERSION=1.2.1
FROM nvcr.io/nvidia/tensorrt-llm/release:${TENSORRT_LLM_VERSION}
WORKDIR /src
COPY constraints.txt ./
COPY libs/contracts libs/contracts
COPY libs/runtime libs/runtime
COPY libs/bus libs/bus
COPY services/worker services/worker
# The image's packages (torch, tensorrt_llm, numpy below 2) stay as NVIDIA pinned them. What ours need on top goes into
# an environment that sees them, so that nothing of theirs is replaced on disk; where both have a package, ours is
# imported. Known: our generated protobuf code needs protobuf 7, tensorrt_llm 1.2.1 asks for 6.33.5 or newer.
RUN python3 -m venv --system-site-packages /opt/inferbus \
    && /opt/inferbus/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt \
        ./libs/contracts ./libs/runtime ./libs/bus ./services/worker
RUN useradd --system --uid 10001 --user-group --create-home --shell /usr/sbin/nologin inferbus \
    && install -d -o 10001 -g 10001 /var/lib/inferbus/models
COPY deploy/docker/healthcheck.py /opt/inferbus/healthcheck.py
ENV PATH=/opt/inferbus/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 9000 9100
ENTRYPOINT ["python", "-m", "inferbus_worker"]

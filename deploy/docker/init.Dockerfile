# One shot: streams, first keys, first prices. Build it from the root of the repository (docker-compose.yml does).
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY constraints.txt ./
COPY libs/contracts libs/contracts
COPY libs/runtime libs/runtime
COPY libs/bus libs/bus
COPY libs/stack libs/stack
# Of inferbus-stack only the module `seed` is used; its dependencies (nats-server and ClickHouse themselves, 600 MB)
# are not.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/inferbus \
    && /opt/inferbus/bin/pip install --disable-pip-version-check -c constraints.txt \
        ./libs/contracts ./libs/runtime ./libs/bus \
    && /opt/inferbus/bin/pip install --disable-pip-version-check --no-deps ./libs/stack

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin inferbus
COPY --from=build /opt/inferbus /opt/inferbus
COPY deploy/docker/init.py /opt/inferbus/init.py
ENV PATH=/opt/inferbus/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
ENTRYPOINT ["python", "/opt/inferbus/init.py"]

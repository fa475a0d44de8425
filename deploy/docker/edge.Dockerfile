# The edge and nothing else. Build it from the root of the repository (docker-compose.yml does).
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY constraints.txt ./
COPY libs/contracts libs/contracts
COPY libs/runtime libs/runtime
COPY libs/bus libs/bus
COPY libs/rating libs/rating
COPY libs/sizing libs/sizing
COPY libs/dialect libs/dialect
COPY libs/budgets libs/budgets
COPY services/edge services/edge
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/inferbus \
    && /opt/inferbus/bin/pip install --disable-pip-version-check -c constraints.txt \
        ./libs/contracts ./libs/runtime ./libs/bus ./libs/rating ./libs/sizing ./libs/dialect ./libs/budgets ./services/edge

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin inferbus
COPY --from=build /opt/inferbus /opt/inferbus
COPY deploy/docker/healthcheck.py /opt/inferbus/healthcheck.py
ENV PATH=/opt/inferbus/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8080 8081 9000
ENTRYPOINT ["python", "-m", "inferbus_edge"]

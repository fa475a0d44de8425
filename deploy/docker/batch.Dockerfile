# The batch service and nothing else. Build it from the root of the repository (docker-compose.yml does).
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY constraints.txt ./
COPY libs/contracts libs/contracts
COPY libs/runtime libs/runtime
COPY libs/bus libs/bus
COPY libs/objects libs/objects
COPY libs/rating libs/rating
COPY libs/webhooks libs/webhooks
COPY libs/dialect libs/dialect
COPY libs/budgets libs/budgets
COPY services/batch services/batch
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/inferbus \
    && /opt/inferbus/bin/pip install --disable-pip-version-check -c constraints.txt \
        ./libs/contracts ./libs/runtime ./libs/bus ./libs/objects ./libs/rating ./libs/webhooks ./libs/dialect ./libs/budgets ./services/batch

FROM python:3.11-slim-bookworm
# A new volume takes its owner from this folder.
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin inferbus \
    && install -d -o 10001 -g 10001 /var/lib/inferbus/scratch
COPY --from=build /opt/inferbus /opt/inferbus
COPY deploy/docker/healthcheck.py /opt/inferbus/healthcheck.py
ENV PATH=/opt/inferbus/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 9000 9100
ENTRYPOINT ["python", "-m", "inferbus_batch"]

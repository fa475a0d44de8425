"""One shot, before the services start: streams, the first two keys, a first price book. Safe to run again.

What `inferbus up` does for an embedded stack, from the same code. Tables are `python -m inferbus_meter.migrate`'s work.
"""

import asyncio
import logging
import sys
from pathlib import Path

from inferbus_bus.connection import BusConfig
from inferbus_bus.errors import StreamApiError
from inferbus_runtime.config import ConfigError, Section, load, together
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.tls import TlsError, TlsFiles
from inferbus_stack.seed import first_keys, seed
from pydantic import Field, SecretStr, ValidationInfo, field_validator

PREFIX = "INFERBUS_INIT_"


class Config(Section):
    """Variables INFERBUS_INIT_…"""

    nats_url: str = "nats://127.0.0.1:4222"
    """Where the broker is; without an answer within 30 s this ends with exit code 1, to be run again."""
    nats_seed: SecretStr
    """nkey seed of the bus' admin, who alone may make streams."""
    api_key: SecretStr = Field(min_length=32)
    """The first API key, of tenant and project "default"; only its hash is stored."""
    admin_key: SecretStr = Field(min_length=32)
    """The first admin key; only its hash is stored."""
    tls_cert: Path | None = None
    """PEM certificate shown to a broker that speaks TLS, which then is all that is spoken."""
    tls_key: Path | None = None
    """PEM private key of it."""
    tls_ca: Path | None = None
    """PEM certificate of the broker's authority."""

    @field_validator("tls_ca")
    @classmethod
    def _whole_identity(cls, ca: Path | None, info: ValidationInfo) -> Path | None:
        return together(ca, info, "tls_cert", "tls_key")

    @property
    def bus(self) -> BusConfig:
        tls = TlsFiles(self.tls_cert, self.tls_key, self.tls_ca) if self.tls_cert and self.tls_key else None
        return BusConfig(self.nats_url, "admin", self.nats_seed.get_secret_value(), tls)


def main() -> int:
    """Exit code 0: all is there. 1: it is not. 2: the configuration is wrong."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        config = load(Config, PREFIX)
        keys = first_keys(config.api_key.get_secret_value(), config.admin_key.get_secret_value())
        asyncio.run(seed(config.bus, keys))
    except ConfigError as error:
        sys.stderr.write("".join(f"{fault}\n" for fault in error.faults))
        return 2
    except (InferBusError, StreamApiError, TlsError) as error:
        sys.stderr.write(f"the bus was not prepared: {error}\n")
        return 1
    sys.stdout.write("streams, keys and prices are there\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

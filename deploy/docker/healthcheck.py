"""Exit code 0 if the gRPC server at the address given (host:port) says that it serves: a container's health check.

healthcheck.py 127.0.0.1:9000 [CERT KEY CA]    with the three files, as the service has them: by mutual TLS
"""

import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_TIMEOUT_SECONDS = 2.0


def main(address: str, *files: str) -> int:
    with _channel(address, *(Path(file).read_bytes() for file in files)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            sys.stderr.write(f"{address} does not answer: {error.code().name}\n")
            return 1
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


def _channel(
    address: str, cert: bytes | None = None, key: bytes | None = None, ca: bytes | None = None
) -> grpc.Channel:
    options = (("grpc.enable_http_proxy", 0),)
    if cert is None:
        return grpc.insecure_channel(address, options=options)
    credentials = grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)
    return grpc.secure_channel(address, credentials, options=options)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

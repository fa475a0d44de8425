"""gRPC and forks: what the supervisor starts must begin as if gRPC were not there."""

import grpc  # noqa: F401 (imported: that is what is tested)
import pytest
from inferbus_stack.environment import keep_grpc_out_of_forks


def test_telling_it_too_late_is_an_error_and_not_a_crash_some_day() -> None:
    with pytest.raises(RuntimeError, match="imported already"):
        keep_grpc_out_of_forks()

"""What any InferBus process needs, and nothing that belongs to one of them.

config      one frozen, typed Config per service, read from variables, checked whole
lifecycle   start and stop in one order; ``main`` is all that a service's ``__main__`` calls
rpc         gRPC between services: health, reflection, the operator's token, errors, traces
telemetry   the door to logs, spans and ``/metrics``
metrics     every metric of the platform, defined once
errors      one error for all rooms
clock       the only place that reads the clocks
"""

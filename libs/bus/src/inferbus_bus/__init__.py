"""JetStream as InferBus uses it: streams, work queues, frames, registries, leases.

A protobuf message goes in, its address comes from :mod:`inferbus_contracts.subjects`. All network details of NATS
stay in this package.
"""

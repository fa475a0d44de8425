"""What tests and benchmarks share: a stack started by the command that users type."""

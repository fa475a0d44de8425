"""What a request may ask of sampling: one bound for both ends of the bus. The edge refuses by it before anything is
accepted; a worker, which does not trust whoever published, asks again."""

MAX_STOPS = 16

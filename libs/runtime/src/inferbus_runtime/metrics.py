"""Every metric of the platform, defined once; OpenTelemetry GenAI names where it has one, in Prometheus spelling.

``labels()`` costs more than the count itself: on a hot path keep the child. Labels hold names from the registries and
closed sets only, never a tenant, a key or a request, so that the number of series stays bounded. Seconds and tokens are
the only units; of GPUs also bytes, watts, joules and °C.
"""

from prometheus_client import Counter, Gauge, Histogram, Info, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]

# Bucket bounds that OpenTelemetry's GenAI conventions recommend for each of these metrics.
TTFT_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TPOT_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
DURATION_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKEN_BUCKETS = tuple(4**n for n in range(14))
# Inside the platform a step takes from tens of microseconds to a few seconds.
STEP_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# From a process that only connects to tens of gigabytes of weights from a slow disk.
COLD_START_BUCKETS = (0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)

GEN_AI_LABELS = ("gen_ai_request_model", "error_type")

# --- what a customer feels (edge) ---------------------------------------------------------------------------------
TIME_TO_FIRST_TOKEN = Histogram(
    "gen_ai_server_time_to_first_token_seconds",
    "Request accepted at the edge to first token out, queueing included; error_type is empty on success",
    GEN_AI_LABELS,
    buckets=TTFT_BUCKETS,
)
TIME_PER_OUTPUT_TOKEN = Histogram(
    "gen_ai_server_time_per_output_token_seconds",
    "(E2E - TTFT) / (output tokens - 1); error_type is empty on success",
    GEN_AI_LABELS,
    buckets=TPOT_BUCKETS,
)
REQUEST_DURATION = Histogram(
    "gen_ai_server_request_duration_seconds",
    "Request accepted at the edge to its last token; error_type is empty on success",
    GEN_AI_LABELS,
    buckets=DURATION_BUCKETS,
)
TOKEN_USAGE = Histogram(
    "gen_ai_client_token_usage",
    "Tokens of a request; gen_ai_token_type is input or output",
    ("gen_ai_request_model", "gen_ai_token_type"),
    buckets=TOKEN_BUCKETS,
)
HTTP_REQUESTS = Counter("inferbus_http_requests_total", "HTTP answers by route template", ("route", "status"))
STREAMS_ACTIVE = Gauge("inferbus_streams_active", "Requests that an edge is answering now")
STREAM_STALLS = Counter("inferbus_stream_stalls_total", "Streams ended because their client did not read")
CLIENT_CANCELS = Counter("inferbus_client_cancels_total", "Requests whose client left before the end")

# --- scheduler ----------------------------------------------------------------------------------------------------
QUEUE_DEPTH = Gauge("inferbus_queue_depth", "Requests accepted and not yet placed", ("model", "priority_class"))
QUEUE_TIME = Histogram("inferbus_queue_time_seconds", "Accepted to placed", ("model",), buckets=STEP_BUCKETS)
PLACEMENTS = Counter("inferbus_placements_total", "Requests handed to a worker", ("model",))
PLACEMENT_SECONDS = Histogram(
    "inferbus_placement_seconds", "Time that one placement decision took", buckets=(1e-5, 2.5e-5, 5e-5, *STEP_BUCKETS)
)
REJECTIONS = Counter("inferbus_rejections_total", "Requests ended without being placed", ("reason",))
MIGRATIONS = Counter("inferbus_migrations_total", "Requests taken from a worker, to go on or to end", ("reason",))
MIGRATION_SECONDS = Histogram(
    "inferbus_migration_seconds",
    "From the reading of what a worker had until all of it was back in the queue",
    buckets=STEP_BUCKETS,
)
FLEET_WORKERS = Gauge("inferbus_fleet_workers", "Workers with a live lease", ("model", "state"))
COLD_START_SECONDS = Histogram(
    "inferbus_cold_start_seconds",
    "From the decision that a model without a worker gets one until that took work",
    ("model",),
    buckets=COLD_START_BUCKETS,
)
MEMORY_BUDGET = Gauge("inferbus_memory_budget_bytes", "Memory that models may take together; only where it is bounded")
MODEL_MEMORY = Gauge(
    "inferbus_model_memory_bytes", "Of the budget, what a model's workers are taken to hold", ("model", "revision")
)
SCHEDULER_SHARDS = Gauge("inferbus_scheduler_shards", "Shards of the models that this scheduler holds")
DEGRADATIONS = Counter("inferbus_degradations_total", "Requests sent to a fallback of their model", ("model",))
DECISIONS_LOST = Counter("inferbus_decisions_lost_total", "Decisions that the stream DECISIONS did not take")

# --- worker -------------------------------------------------------------------------------------------------------
WORKER_ACTIVE = Gauge("inferbus_worker_active", "Generations running in the engine")
WORKER_WAITING = Gauge("inferbus_worker_waiting", "Generations submitted and waiting for the engine")
WORKER_START_SECONDS = Gauge(
    "inferbus_worker_start_seconds", "What its start took; part is process, artifacts, engine or total", ("part",)
)
WORKER_CAPACITY = Gauge("inferbus_worker_capacity", "Generations that the engine runs at once")
GENERATIONS = Counter("inferbus_generations_total", "Generations ended", ("model", "finish_reason"))
INPUT_TOKENS = Counter("inferbus_input_tokens_total", "Input tokens of ended generations", ("model",))
CACHED_INPUT_TOKENS = Counter(
    "inferbus_cached_input_tokens_total", "Those of them that were read from the engine's cache", ("model",)
)
OUTPUT_TOKENS = Counter("inferbus_output_tokens_total", "Token events put on the log", ("model",))
ENGINE_RESTARTS = Counter(
    "inferbus_engine_restarts_total", "Engines started again: dead, standing still, or leaking", ("engine",)
)

# --- the engine, as it says itself; what one does not say has no series ---------------------------------------------
ENGINE_REQUESTS = Gauge(
    "inferbus_engine_requests", "By the engine's own count; state is running or waiting", ("engine", "state")
)
ENGINE_KV_BLOCKS = Gauge("inferbus_engine_kv_blocks", "Blocks of its KV cache", ("engine",))
ENGINE_KV_BLOCKS_USED = Gauge("inferbus_engine_kv_blocks_used", "Those held by what runs now", ("engine",))
ENGINE_KV_BLOCK_TOKENS = Gauge("inferbus_engine_kv_block_tokens", "Tokens of one block", ("engine",))
ENGINE_KV_BLOCKS_REUSED = Gauge(
    "inferbus_engine_kv_blocks_reused", "Blocks of input read from the cache since the engine's start", ("engine",)
)
ENGINE_STEP_SECONDS = Gauge("inferbus_engine_step_seconds", "Its last step", ("engine",))
ENGINE_DRAFTED_TOKENS = Gauge(
    "inferbus_engine_drafted_tokens", "Tokens guessed ahead since the engine's start", ("engine",)
)
ENGINE_ACCEPTED_TOKENS = Gauge("inferbus_engine_accepted_tokens", "Those of them that were right", ("engine",))

# --- the GPUs that a worker computes on; what a GPU does not say has no series -------------------------------------
GPU_UTILIZATION = Gauge("inferbus_gpu_utilization_ratio", "Part of the last moments with something computed", ("gpu",))
GPU_MEMORY_USED = Gauge("inferbus_gpu_memory_used_bytes", "Memory of the GPU, or of the MIG instance, in use", ("gpu",))
GPU_MEMORY_TOTAL = Gauge("inferbus_gpu_memory_total_bytes", "Memory that it has", ("gpu",))
GPU_POWER = Gauge("inferbus_gpu_power_watts", "Power drawn now", ("gpu",))
GPU_ENERGY = Counter("inferbus_gpu_energy_joules_total", "Energy drawn since the worker's start", ("gpu",))
GPU_TEMPERATURE = Gauge("inferbus_gpu_temperature_celsius", "Temperature", ("gpu",))
GPU_SLOWDOWN_TEMPERATURE = Gauge("inferbus_gpu_slowdown_celsius", "From here on it slows itself down", ("gpu",))
GPU_ECC_UNCORRECTED = Gauge(
    "inferbus_gpu_ecc_uncorrected", "Uncorrected memory errors; kind is volatile (since the driver) or aggregate",
    ("gpu", "kind"),
)  # fmt: skip
GPU_THROTTLED = Gauge("inferbus_gpu_throttled", "1 while this holds the clocks down", ("gpu", "reason"))
GPU_XIDS = Counter("inferbus_gpu_xids_total", "Xid faults that the driver reported", ("gpu", "xid"))
GPU_SICK = Gauge("inferbus_gpu_sick", "1 from this fault on: ecc, xid, lost or hot", ("gpu", "fault"))

# --- bus ----------------------------------------------------------------------------------------------------------
BUS_CONNECTED = Gauge("inferbus_bus_connected", "1 while the broker is reachable")
BUS_RECONNECTS = Counter("inferbus_bus_reconnects_total", "Connections to the broker made again")
BUS_PUBLISH_FAILURES = Counter("inferbus_bus_publish_failures_total", "Publishes refused or lost", ("reason",))
REDELIVERIES = Counter("inferbus_redeliveries_total", "Deliveries that were not the first", ("stream",))
FRAMES_PUBLISHED = Counter("inferbus_frames_published_total", "Frames sent to the log, repeats not counted")
FRAMES_REPUBLISHED = Counter("inferbus_frames_republished_total", "Frames sent again after a broken connection")
FRAMES_UNACKED = Gauge("inferbus_frames_unacked", "Frames sent and not yet known to be stored")

# --- meter --------------------------------------------------------------------------------------------------------
INGEST_ROWS = Counter("inferbus_ingest_rows_total", "Rows inserted", ("table",))
INGEST_INSERT_SECONDS = Histogram(
    "inferbus_ingest_insert_seconds", "Time that one insert took", ("table",), buckets=STEP_BUCKETS
)
INGEST_RETRIES = Counter("inferbus_ingest_retries_total", "Steps of the ingest tried again", ("reason",))
INGEST_MALFORMED = Counter("inferbus_ingest_malformed_total", "Frames on the log that cannot be read: see the audit")
INGEST_LAG_FRAMES = Gauge("inferbus_ingest_lag_frames", "Frames on the log that are not in the table yet")
INGEST_POSITION = Gauge("inferbus_ingest_position", "Up to this sequence of the log everything is in the tables")
INGEST_FRAMES = Counter("inferbus_ingest_frames_total", "Frames that this meter brought into the tables")
INGEST_TAKEOVERS = Counter("inferbus_ingest_takeovers_total", "Ranges that another meter had begun, done by this one")

# --- any process --------------------------------------------------------------------------------------------------
PROCESS = Info("inferbus_process", "Which service and instance this is")
RPC_REQUESTS = Counter("inferbus_rpc_requests_total", "gRPC calls answered", ("method", "code"))

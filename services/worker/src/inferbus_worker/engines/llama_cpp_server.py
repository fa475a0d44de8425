"""The child process: llama.cpp's own server on a free loopback port. Run by :mod:`.llama_cpp_process` only.

It prints one line with its URL on standard output when it is ready, and ends with its parent, however that ended.
"""

import argparse
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parser = argparse.ArgumentParser(description="llama.cpp server as a child of an InferBus worker")
    parser.add_argument("--model", required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--context-length", type=int, required=True)
    parser.add_argument("--precision", choices=("f32", "f16"), required=True)
    parser.add_argument("--kv-tokens", type=int, required=True)
    parser.add_argument("--batch-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--omp-wait-policy", choices=("active", "passive", "default"), required=True)
    parser.add_argument("--lora", action="append", default=[])
    options = parser.parse_args()
    die_with(options.parent)
    if options.omp_wait_policy != "default":
        # OpenMP reads its settings when the library below is loaded.
        os.putenv("OMP_WAIT_POLICY", options.omp_wait_policy)
    _serve(options)


def die_with(parent: int) -> None:
    """An engine without its worker would hold the cores for nobody."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the call above
        sys.exit(1)


def _serve(options: argparse.Namespace) -> None:
    import xllamacpp  # an extra of this package, and to be loaded after the environment is set

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.n_parallel = options.slots
    params.n_ctx = options.kv_tokens
    params.kv_unified = True
    if options.precision == "f32":
        # Both, and weights in F32, or a greedy text depends on who shares its batch (see llama_cpp_model).
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.kv_unified_per_slot = options.context_length  # 0: as far as the model was trained
    # One engine call takes at most this many tokens: it bounds what a long prompt adds to the gaps of its neighbours
    # and how long a cancelled prefill goes on.
    params.n_batch = params.n_ubatch = options.batch_tokens
    # Each request says which one it is made with: who says nothing gets none.
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in options.lora]
    # The server's own prompt cache asks nobody who may see what. The worker says which slot runs what, and empties idle
    # ones; the folder is never written to, but without its name the server does not empty any.
    params.cache_ram_mib = 0
    params.slot_save_path = f"{os.devnull}/"
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    # A stream occupies one HTTP thread; the others are for tokenizing.
    params.n_threads_http = options.slots + 4
    params.ctx_shift = False
    params.fit_params = False
    params.verbosity = 1
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the worker ends us after its drain
    while True:  # until it is killed: there is nothing of ours to save
        signal.pause()


if __name__ == "__main__":
    main()

"""llama.cpp's own OpenAI server, of the package xllamacpp, on a given port. Run as a program by :mod:`.servers`."""

import argparse
import ctypes
import signal


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.n_parallel = 20
    params.n_ctx = 16384
    params.kv_unified = True
    # F32 all through: a greedy text then does not depend on its neighbours in a batch.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_batch = params.n_ubatch = 256
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.n_threads_http = 32
    params.cache_ram_mib = 0
    params.ctx_shift = False
    params.fit_params = False
    params.verbosity = 1
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()

"""Files and jobs. Its API (``proto/inferbus/batch/v1``) and its decisions (``core``) stand; there is no process yet."""

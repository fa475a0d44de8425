"""Files and jobs. Only its API stands so far (``proto/inferbus/batch/v1``); there is no process yet."""

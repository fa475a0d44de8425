// A form with a file on its way to the API. fetch cannot say how far it is; this can. The file is read from the disk as
// it goes: none of it is held.

// Nothing is taken or answered for so long: the connection is dead.
const STALLED_MS = 120_000;

/** {status (0: no answer came), header(name), text}. `onProgress(bytes)`; rejected with the signal's reason if it takes
 *  it back. */
export function sendForm(path, form, key, { onProgress = () => {}, signal } = {}) {
  return new Promise((done, refuse) => {
    if (signal?.aborted) {
      refuse(signal.reason);
      return;
    }
    const request = new XMLHttpRequest();
    let watch = null;
    const takenBack = () => request.abort();

    function moving() {
      clearTimeout(watch);
      watch = setTimeout(() => request.abort(), STALLED_MS);
    }

    function end() {
      clearTimeout(watch);
      signal?.removeEventListener("abort", takenBack);
      if (signal?.aborted) refuse(signal.reason);
      else
        done({ status: request.status, header: (name) => request.getResponseHeader(name), text: request.responseText });
    }

    request.open("POST", path);
    request.setRequestHeader("Authorization", `Bearer ${key}`);
    request.upload.addEventListener("progress", (event) => {
      moving();
      onProgress(event.loaded);
    });
    request.addEventListener("loadend", end);
    signal?.addEventListener("abort", takenBack, { once: true });
    moving();
    request.send(form);
  });
}

// Asks again and again, as long as there is something to see and somebody who sees it.

const LONGEST_MS = 30_000;

/** `ask()` now and, as long as it answers true, `every` milliseconds after each answer while the tab is seen; at once
 *  when the tab is seen again. If it throws it is asked again, later each time, and `failed(error)` is told; false from
 *  that: no more. Returns {again(): ask now, stop()}. */
export function follow(ask, failed, every = 3000) {
  let timer = null;
  let running = false;
  let missed = false; // asked for while it was being asked
  let due = false; // its time came while nobody looked
  let faults = 0;
  let stopped = false;

  async function turn() {
    clearTimeout(timer);
    if (stopped) return;
    if (running) {
      missed = true;
      return;
    }
    running = true;
    due = false;
    let more = false;
    try {
      more = await ask();
      faults = 0;
    } catch (error) {
      faults += 1;
      more = !stopped && failed(error) !== false;
    }
    running = false;
    if (stopped) return;
    if (missed) {
      missed = false;
      turn();
    } else if (more) {
      timer = setTimeout(come, Math.min(LONGEST_MS, every * 2 ** faults));
    }
  }

  function come() {
    if (document.hidden) due = true;
    else turn();
  }

  const seen = () => {
    if (due && !document.hidden) turn();
  };
  document.addEventListener("visibilitychange", seen);
  turn();
  return {
    again: turn,
    stop() {
      stopped = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
    },
  };
}

// Server-sent events out of bytes, wherever these are cut: in a line, in a line's end, in a letter.

/** `feed(bytes)` → the events that are whole by now: [{id, data}]. `id` is that of the event, or of the last one that had
 *  one. What is a comment, or has no data, is none. */
export function eventReader() {
  const decoder = new TextDecoder(); // takes a byte order mark away
  let rest = "";
  let id = "";
  let data = [];

  function line(text, events) {
    if (text === "") {
      if (data.length) events.push({ id, data: data.join("\n") });
      data = [];
      return;
    }
    const colon = text.indexOf(":");
    if (colon === 0) return; // a comment, which keeps the connection alive
    const name = colon < 0 ? text : text.slice(0, colon);
    const value = colon < 0 ? "" : text.slice(text[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "data") data.push(value);
    else if (name === "id" && !value.includes("\0")) id = value;
  }

  return {
    feed(bytes) {
      rest += decoder.decode(bytes, { stream: true });
      const events = [];
      let from = 0;
      for (;;) {
        const at = endOfLine(rest, from);
        if (at < 0) break;
        line(rest.slice(from, at), events);
        from = at + (rest.startsWith("\r\n", at) ? 2 : 1);
      }
      rest = rest.slice(from);
      return events;
    },
  };
}

/** Where the line from `from` on ends, -1 if it is not known yet: what follows a CR at the end may be its LF. */
function endOfLine(text, from) {
  for (let at = from; at < text.length; at += 1) {
    const one = text[at];
    if (one === "\n") return at;
    if (one === "\r") return at + 1 < text.length ? at : -1;
  }
  return -1;
}

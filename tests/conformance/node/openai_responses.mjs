// The Responses API by OpenAI's Node SDK: unary, streamed, chained, in the background, resumed, deleted.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { MODEL, client } from "./client.mjs";

const body = { model: MODEL, input: "Count from one to ten in words.", max_output_tokens: 12, temperature: 0 };

const unary = await client.responses.create(body);
assert.equal(unary.status, "incomplete");
assert.equal(unary.usage.output_tokens, 12);

const events = [];
for await (const event of await client.responses.create({ ...body, stream: true })) events.push(event);
assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
const joined = (some) => some.filter((one) => one.type === "response.output_text.delta").map((one) => one.delta).join("");
const text = joined(events);
assert.equal(text, unary.output_text);
assert.equal(events.at(-1).type, "response.incomplete");

const helped = await client.responses.stream(body).finalResponse();
assert.equal(helped.output_text, text);

const next = await client.responses.create({ ...body, input: "And on.", previous_response_id: unary.id });
const items = [];
for await (const item of client.responses.inputItems.list(next.id, { order: "asc" })) items.push(item);
assert.deepEqual(items.map((item) => item.role), ["user", "assistant", "user"]);

const stream = await client.responses.create({ ...body, background: true, stream: true });
const seen = [];
for await (const event of stream) {
  seen.push(event);
  if (seen.length === 5) break;
}
const asked = { stream: true, starting_after: seen.at(-1).sequence_number };
for await (const event of await client.responses.retrieve(seen[0].response.id, asked)) seen.push(event);
assert.deepEqual(seen.map((event) => event.sequence_number), [...seen.keys()]);
assert.equal(joined(seen), text);
assert.equal(seen.at(-1).response.output[0].content[0].text, text);

await client.responses.delete(unary.id);
await assert.rejects(client.responses.retrieve(unary.id), OpenAI.NotFoundError);
console.log("ok");

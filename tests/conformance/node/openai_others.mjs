// Embeddings, completions, models and the typed errors by OpenAI's Node SDK.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { EMBEDDING_MODEL, MODEL, client } from "./client.mjs";

const messages = [{ role: "user", content: "Count." }];
const body = { model: MODEL, messages, max_completion_tokens: 4, temperature: 0 };

const coded = await client.embeddings.create({ model: EMBEDDING_MODEL, input: ["one", "two"] });
const plain = await client.embeddings.create({ model: EMBEDDING_MODEL, input: ["one", "two"], encoding_format: "float" });
assert.equal(coded.data.length, 2);
coded.data.forEach((vector, at) => {
  assert.equal(vector.embedding.length, 384);
  vector.embedding.forEach((value, place) => assert.ok(Math.abs(value - plain.data[at].embedding[place]) < 1e-5));
});

const completion = await client.completions.create({ model: MODEL, prompt: "One, two,", max_tokens: 4, temperature: 0 });
assert.equal(completion.usage.completion_tokens, 4);

const names = [];
for await (const model of client.models.list()) names.push(model.id);
assert.ok(names.includes(MODEL) && names.includes(EMBEDDING_MODEL));

const create = (more, options) => client.chat.completions.create({ ...body, ...more }, options);
await assert.rejects(create({ temperature: 9 }), (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature");
await assert.rejects(create({ model: "none" }), OpenAI.NotFoundError);
await assert.rejects(client.withOptions({ apiKey: "ib-wrong" }).models.list(), OpenAI.AuthenticationError);
const limited = client.withOptions({ apiKey: process.env.INFERBUS_LIMITED_KEY });
await limited.chat.completions.create(body);
await assert.rejects(limited.chat.completions.create(body), OpenAI.RateLimitError);
const narrow = client.withOptions({ apiKey: process.env.INFERBUS_ADMIN_ONLY_KEY });
await assert.rejects(narrow.chat.completions.create(body), OpenAI.PermissionDeniedError);
const options = { headers: { "Idempotency-Key": "node" } };
assert.deepEqual(await create({}, options), await create({}, options));
await assert.rejects(create({ max_completion_tokens: 5 }, options), OpenAI.ConflictError);
console.log("ok");

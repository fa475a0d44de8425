// One client for every script; the test names the stack in the environment.
import OpenAI from "openai";

export const { INFERBUS_BASE_URL: baseURL, INFERBUS_API_KEY: apiKey, INFERBUS_MODEL: MODEL } = process.env;
export const EMBEDDING_MODEL = process.env.INFERBUS_EMBEDDING_MODEL;
export const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 120_000 });

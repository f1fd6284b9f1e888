// Answers of one exported folder in JavaScript, by transformers.js and by onnxruntime-node alone.
//
//     node answers.mjs < request.json
//
// The request is {"folder": ABSOLUTE, "file": "onnx/...", "dtype": "q8" | "q4" | "fp32",
// "task": "text-classification" | "token-classification", "texts": [...]}. The reply, one line:
// {"pipeline": [...], "tokens": [[id, ...], ...], "logits": [[...], ...], "runtime": "1.30.0"}.

import { readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";

import { AutoTokenizer, env, pipeline } from "@huggingface/transformers";
import * as ort from "onnxruntime-node";

const request = JSON.parse(readFileSync(0, "utf8"));
env.allowRemoteModels = false;
env.localModelPath = dirname(request.folder);
const name = basename(request.folder);

const pipe = await pipeline(request.task, name, { dtype: request.dtype, device: "cpu" });
const answered = [];
for (const text of request.texts) answered.push(await pipe(text));

const tokenizer = await AutoTokenizer.from_pretrained(name);
const session = await ort.InferenceSession.create(join(request.folder, request.file));
const tokens = [];
const logits = [];
for (const text of request.texts) {
  const encoded = tokenizer(text);
  const feeds = {};
  for (const input of session.inputNames) {
    const tensor = encoded[input];
    feeds[input] = new ort.Tensor("int64", tensor.data, tensor.dims);
  }
  const output = await session.run(feeds);
  tokens.push(Array.from(encoded.input_ids.data, Number));
  logits.push(Array.from(output.logits.data));
}

console.log(
  JSON.stringify({ pipeline: answered, tokens, logits, runtime: ort.env.versions.node ?? "" }),
);

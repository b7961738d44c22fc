// Runs models in a JavaScript host and writes their outputs.
//
//   node run_models.mjs PACKAGE MODULES JOBS.json
//
// PACKAGE is onnxruntime-node or onnxruntime-web (its WASM build), MODULES the folder of node_modules.
// JOBS.json is a list of
//   {model, external: [file], inputs: [{name, type, dims, file}], output: prefix}
// where files hold raw little-endian elements; `external` are the model's data files, beside it.
// For each output, PREFIX.NUMBER.bin is written, and PREFIX.json with [{name, type, dims}].
// onnxruntime-node reads the model from its path; onnxruntime-web gets bytes, as in a browser.

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, resolve } from "node:path";

const [packageName, modules, jobsFile] = process.argv.slice(2);
const ort = createRequire(resolve(modules, "here.js"))(packageName);
const isWeb = packageName === "onnxruntime-web";
if (isWeb) ort.env.wasm.numThreads = 1;

// float16 has no array type of its own in older hosts: its bits travel as 16-bit integers.
const ARRAYS = {
  bool: Uint8Array,
  float16: Uint16Array,
  float32: Float32Array,
  float64: Float64Array,
  int32: Int32Array,
  int64: BigInt64Array,
};

function readTensor({ type, dims, file }) {
  const bytes = readFileSync(file);
  const copy = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  return new ort.Tensor(type, new ARRAYS[type](copy), dims);
}

async function openSession({ model, external }) {
  const options = { executionProviders: [isWeb ? "wasm" : "cpu"] };
  if (!isWeb) return ort.InferenceSession.create(model, options);
  options.externalData = external.map((file) => ({
    path: basename(file),
    data: new Uint8Array(readFileSync(file)),
  }));
  return ort.InferenceSession.create(new Uint8Array(readFileSync(model)), options);
}

async function runJob(job) {
  const session = await openSession(job);
  const feeds = Object.fromEntries(job.inputs.map((input) => [input.name, readTensor(input)]));
  const results = await session.run(feeds);
  const outputs = session.outputNames.map((name, number) => {
    const { type, dims, data } = results[name];
    const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
    writeFileSync(`${job.output}.${number}.bin`, bytes);
    return { name, type, dims: [...dims].map(Number) };
  });
  writeFileSync(`${job.output}.json`, JSON.stringify(outputs));
  await session.release();
}

for (const job of JSON.parse(readFileSync(jobsFile, "utf8"))) {
  try {
    await runJob(job);
  } catch (error) {
    console.error(`${job.model}: ${error.message ?? error}`);
    process.exit(1);
  }
}

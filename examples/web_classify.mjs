// In this folder, once: npm install
// node examples/web_classify.mjs network.onnx picture.png TTFF      (a picture of the network's own size)
import fs from "node:fs";
import * as ort from "onnxruntime-web";
import { PNG } from "pngjs";

const [file, picture, word] = process.argv.slice(2);
const [mean, std] = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];
const { width, height, data } = PNG.sync.read(fs.readFileSync(picture)); // in a page: getImageData of a canvas
const pixels = new Float32Array(3 * width * height);
for (let place = 0; place < width * height; place++) {
  for (const c of [0, 1, 2]) pixels[c * width * height + place] = (data[4 * place + c] / 255 - mean[c]) / std[c];
}
const images = new ort.Tensor("float32", pixels, [1, 3, height, width]);
const skip = new ort.Tensor("bool", Uint8Array.from(word, (letter) => letter === "T"), [word.length]);
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(fs.readFileSync(file));
const logits = (await session.run({ images, skip })).logits.data;
const chances = logits.map((logit) => Math.exp(logit - Math.max(...logits)));
const best = chances.indexOf(Math.max(...chances));
console.log(`${((100 * chances[best]) / chances.reduce((a, b) => a + b)).toFixed(1)} % class ${best}`);

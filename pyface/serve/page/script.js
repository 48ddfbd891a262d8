"use strict";

const LOWEST = 0.1;   // faces with lower scores are not asked for
const element = (id) => document.getElementById(id);
const [stage, canvas, video, slider] = ["stage", "canvas", "video", "threshold"].map(element);

let bitmap = null;    // the image shown
let result = null;    // the service's JSON for it, with all faces above LOWEST
let latest = 0;       // number of the latest request; answers to earlier ones are ignored
let stream = null;    // the camera, while it is on

function say(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

/** Sends an image file, and shows it with its faces. */
async function detect(file) {
  const number = ++latest;
  stopCamera();
  clear();
  say("Looking for faces …");
  try {
    const found = await ask(file);
    const image = await createImageBitmap(file).catch(() => null);
    if (number === latest) show(found, image);
  } catch (error) {
    if (number === latest) say(error.message, true);
  }
}

/** Returns the service's JSON for an image file, or throws an error with the service's sentence. */
async function ask(file) {
  let response;
  try {
    response = await fetch(`detect?score_threshold=${LOWEST}`, { method: "POST", body: file });
  } catch {
    throw new Error("The service cannot be reached.");
  }
  const answer = await response.json().catch(() => ({ error: `The service returned status ${response.status}.` }));
  if (answer.error) throw new Error(answer.error);
  return answer;
}

function clear() {
  bitmap = result = null;
  canvas.hidden = element("found").hidden = true;
  element("hint").hidden = false;
}

function show(found, image) {
  result = found;
  bitmap = image;
  element("found").hidden = false;
  element("hint").hidden = canvas.hidden = true;
  // Without the pixels, as for TIFF, which browsers do not show, the boxes are drawn on an empty canvas.
  canvas.width = found.width;
  canvas.height = found.height;
  canvas.hidden = false;
  update();
}

/** The result with the faces above the slider's threshold. */
function selected() {
  return { ...result, faces: result.faces.filter((face) => face.score > Number(slider.value)) };
}

function update() {
  element("value").textContent = Number(slider.value).toFixed(2);
  if (!result) return;
  const { faces } = selected();
  element("json").textContent = JSON.stringify(selected(), null, 1);
  say(faces.length === 1 ? "1 face" : `${faces.length} faces`);
  draw(faces);
}

function draw(faces) {
  const pen = canvas.getContext("2d");
  const line = Math.max(1, Math.max(canvas.width, canvas.height) / 400);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (bitmap) pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  for (const face of [...faces].reverse()) {   // the best face last, on top
    const [x1, y1, x2, y2] = face.box;
    pen.lineWidth = 2 * line;
    pen.strokeStyle = "black";
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
    pen.lineWidth = line;
    pen.strokeStyle = "#3cdc3c";
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
    for (const [x, y] of face.landmarks ?? []) dot(pen, x, y, Math.max(1.5, (x2 - x1) / 40));
    label(pen, formatScore(face.score), x1, y1, 9 * line);
  }
}

/** The score with two digits; "1.00" is for a score of 1 alone, so that 0.9996 does not look certain. */
function formatScore(score) {
  return (score < 1 ? Math.min(score, 0.99) : score).toFixed(2);
}

function dot(pen, x, y, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fillStyle = "#ff00c8";
  pen.fill();
}

/** Writes text above a box's corner, or inside the box if there is no room above. */
function label(pen, text, x, y, size) {
  pen.font = `${size}px sans-serif`;
  pen.textBaseline = "bottom";
  const height = 1.2 * size;
  const bottom = y >= height ? y : y + height;
  pen.fillStyle = "#3cdc3c";
  pen.fillRect(x, bottom - height, pen.measureText(text).width + size / 2, height);
  pen.fillStyle = "black";
  pen.fillText(text, x + size / 4, bottom);
}

async function startCamera() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } } });
  } catch (error) {
    say(`The camera cannot be used: ${error.message}.`, true);
    return;
  }
  ++latest;
  clear();
  element("hint").hidden = true;
  video.srcObject = stream;
  video.hidden = false;
  await video.play();
  element("camera").textContent = "Take the photo";
  say("");
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  video.hidden = true;
  element("camera").textContent = "Use the camera";
}

async function takePhoto() {
  const frame = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  frame.getContext("2d").drawImage(video, 0, 0);
  await detect(await frame.convertToBlob({ type: "image/jpeg", quality: 0.95 }));
}

function detectFirst(files) {
  if (files.length) detect(files[0]);
}

element("file").addEventListener("change", (event) => {
  detectFirst(event.target.files);
  event.target.value = "";   // so that the same file can be chosen again
});
element("camera").addEventListener("click", () => (stream ? takePhoto() : startCamera()));
element("camera").hidden = !navigator.mediaDevices;   // browsers offer the camera on https and localhost only
element("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(JSON.stringify(selected()));
    say("Copied.");
  } catch {
    getSelection().selectAllChildren(element("json"));
    say("The text is selected, copy it with Ctrl+C.");
  }
});
slider.addEventListener("input", update);
document.addEventListener("paste", (event) => detectFirst(event.clipboardData.files));
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    stage.classList.toggle("over", name === "dragenter" || name === "dragover");
  });
}
document.addEventListener("drop", (event) => detectFirst(event.dataTransfer.files));

slider.value = 0.5;
update();
fetch("health").then((response) => response.json()).then((health) => {
  element("model").textContent = `${health.model} on ${health.device}`;
  slider.value = health.score_threshold;
  update();
}).catch(() => {});

// The protocol with a kernel behind it, by anywidget: a numbered message for each question.
import { make } from "./dom.js";

const QUESTIONS = ["photographs", "objects", "embed", "ask", "explain", "picture", "original", "map",
  "choose"]; // prettier-ignore

const LARGEST = 1600; // pixels: a longer photograph is reduced before it is sent

// A photograph as JPEG, upright: a server refuses messages of more than some megabytes.
async function reduced(bytes) {
  const bitmap = await createImageBitmap(new Blob([bytes]));
  const shrink = Math.min(1, LARGEST / Math.max(bitmap.width, bitmap.height));
  const canvas = make("canvas", { width: Math.round(bitmap.width * shrink), height: Math.round(bitmap.height * shrink) }); // prettier-ignore
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
  return blob.arrayBuffer();
}

// `alive()` says whether the kernel is there; `stopped` is called once it is not.
function kernel(model, alive, stopped) {
  const waiting = new Map();
  const view = Math.random().toString(36).slice(2); // one model may be shown twice
  let count = 0;

  const hear = ({ number, answer, error }, buffers) => {
    const asked = waiting.get(number);
    waiting.delete(number);
    if (error) asked?.fail(new Error(error));
    else asked?.done(answer.type ? new Blob(buffers, { type: answer.type }) : answer);
  };
  const end = () => {
    for (const { fail } of waiting.values()) fail(new Error("The kernel has stopped."));
    waiting.clear();
    stopped();
  };
  const check = () => alive() || end();
  const live = () => setTimeout(check);
  const heard = { "msg:custom": hear, "comm:close": end, comm_live_update: live };
  for (const [event, does] of Object.entries(heard)) model.on(event, does);

  const ask = (question) => ({ bytes, ...given } = {}) =>
    new Promise((done, fail) => {
      const number = `${view}-${(count += 1)}`;
      waiting.set(number, { done, fail });
      try {
        model.send({ number, question, given }, undefined, bytes ? [bytes] : []);
      } catch {
        end();
      }
    }); // prettier-ignore
  const backend = Object.fromEntries(QUESTIONS.map((question) => [question, ask(question)]));
  const embed = async ({ bytes, ...given }) => {
    const sent = await reduced(bytes).catch(() => bytes); // another format: the kernel may read it
    return backend.embed({ bytes: sent, ...given });
  };
  const close = () => {
    for (const [event, does] of Object.entries(heard)) model.off(event, does);
  };
  return [{ ...backend, embed }, close];
}

export { kernel };

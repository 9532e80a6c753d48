// The network in a thread of its own (engine.js speaks to it): the page stays quick meanwhile.
import { load } from "./network.js";

let network;

self.onmessage = async ({ data: { number, call, given } }) => {
  try {
    if (call === "load") network = load(...given);
    const answer = call === "load" ? (await network, true) : await (await network)[call](...given);
    self.postMessage({ number, answer });
  } catch (error) {
    self.postMessage({ number, error: error.message });
  }
};

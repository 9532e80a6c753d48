// Where somebody is: what was asked, kept so that Back returns to it. In an app it stands in the
// address, and can be shared; in a notebook, whose address is not ours, only here.

function written({ id, box, kind, k, settings }) {
  const parts = { photograph: id, by: kind, answers: k, ...settings };
  if (box) parts.box = box.map(Math.round).join();
  return `#${new URLSearchParams(parts)}`;
}

function read(hash) {
  const parts = Object.fromEntries(new URLSearchParams(hash.slice(1)));
  const { photograph, box, by, answers, ...settings } = parts;
  if (!photograph) return null;
  const ends = box?.split(",").map(Number);
  const whole = ends?.length === 4 && ends.every(Number.isFinite) ? ends : null;
  return { id: photograph, box: whole, kind: by || "both", k: Number(answers) || 8, settings };
}

// `come(state)` is called when somebody has gone back, or forward.
function inAddress(come) {
  const back = () => {
    const state = read(location.hash);
    if (state) come(state);
  };
  window.addEventListener("popstate", back);
  return {
    now: () => read(location.hash),
    go(state, first) {
      if (written(state) === location.hash) return;
      history[first ? "replaceState" : "pushState"](null, "", written(state));
    },
    back: () => history.back(),
    close: () => window.removeEventListener("popstate", back),
  };
}

function inMemory(come) {
  const states = [];
  return {
    now: () => null,
    go(state, first) {
      if (first) states.pop();
      states.push(state);
    },
    back() {
      if (states.length < 2) return;
      states.pop();
      come(states.at(-1));
    },
    close() {},
  };
}

export { inAddress, inMemory };

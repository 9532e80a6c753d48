// Figures become larger by a click, and whoever reads with keys or by ear finds the way.

const all = (of) => [...document.querySelectorAll(of)];
const LEAST = 960; // pixels: enough for the letters of a wide figure; a phone scrolls it

function enlarge(image) {
  const shown = document.createElement("dialog");
  shown.className = "enlarged";
  shown.ariaLabel = image.alt;
  shown.innerHTML = "<form method=dialog><button>Close</button></form>";
  const large = shown.appendChild(image.cloneNode());
  large.removeAttribute("style");
  large.style.width = `${Math.min(2 * image.naturalWidth, Math.max(0.96 * innerWidth, LEAST))}px`;
  large.onclick = () => shown.close();
  shown.onclose = () => shown.remove();
  document.body.append(shown);
  shown.showModal();
}

function figures() {
  for (const image of all("article img")) {
    if (image.closest("a, button, .objemb, .objemb-touch")) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "enlarge";
    button.title = "Larger";
    button.onclick = () => enlarge(image);
    image.replaceWith(button);
    button.append(image);
  }
}

// What scrolls can be scrolled by keys.
function scrolled() {
  for (const box of all("article pre, .table-wrapper, .cell_output, div.math")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

// Furo leaves its columns without names, and captions without a level; pandas leaves corners empty.
function names() {
  for (const one of all(".sidebar-drawer")) one.ariaLabel = "This site";
  for (const one of all(".toc-drawer")) one.ariaLabel = "On this page";
  for (const one of all("[role=heading]")) one.ariaLevel = "2";
  for (const one of all("th")) if (!one.textContent.trim()) one.role = "cell";
}

addEventListener("DOMContentLoaded", () => {
  figures();
  names();
  scrolled();
});
addEventListener("load", scrolled);
addEventListener("resize", scrolled);

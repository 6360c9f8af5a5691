// Elements, numbers and pictures: what all parts of the page are made of.

const report = JSON.parse(document.getElementById("report").textContent);
const SVG = "http://www.w3.org/2000/svg";

// An element; of attributes `text` is its text, `on…` a listener, and what is null or false is left out.
function make(name, attributes, ...children) {
  const svg = ["svg", "g", "path", "line", "circle", "rect", "text", "title"].includes(name);
  const element = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") element.textContent = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// A number to so many digits; a dash where there is none. The minus sign is a minus sign.
function shown(value, digits) {
  if (value === null || value === undefined) return "–";
  return value.toFixed(digits === undefined ? 2 : digits).replace("-", "−");
}

// A number of any size in few characters: 0.207, 2.5e−8.
function compact(value) {
  const small = value !== 0 && Math.abs(value) < 1e-3;
  return (small ? value.toExponential(1) : String(Number(value.toPrecision(3)))).replaceAll("-", "−");
}

function milliliters(value) {
  if (value === null || value === undefined) return "–";
  return `${shown(value, 3)} ml`;
}

function interval(row, digits) {
  if (row.low === null || row.low === undefined || row.high === null) return "";
  return `${shown(row.low, digits)} to ${shown(row.high, digits)}`;
}

function plural(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

// The address of a picture's bytes; made once, since a page may show it twice.
const addresses = new Map();
function picture(base64, type = "image/jpeg") {
  if (!addresses.has(base64)) addresses.set(base64, URL.createObjectURL(new Blob([bytesOf(base64)], { type })));
  return addresses.get(base64);
}

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// A picture that is too wide for a narrow screen scrolls by itself, and with the keyboard.
function wide(image) {
  image.addEventListener("load", () => image.classList.toggle("strip", image.naturalWidth > 2 * image.naturalHeight));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "picture, scrolls sideways" }, image);
}

function section(id, title, ...children) {
  return make("section", { id, "aria-labelledby": `${id}-title` }, make("h2", { id: `${id}-title`, text: title }), ...children);
}

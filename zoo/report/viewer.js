// Masks of several models side by side: one image large, in step, and all images below.
//
// A map is bytes of segment ids (deflated, base64) with a table of its segments; it is painted here, so that colours,
// opacity, filters and errors cost nothing in the file.
"use strict";

const NONE = -1;
const VIEWS = [
  ["prediction", "what the models say"],
  ["errors", "where they are wrong, coloured by how"],
  ["disagreement", "what they say where they are not of one mind"],
  ["image", "the image alone"],
];

async function inflate(map, size) {
  const packed = Uint8Array.from(atob(map.ids), (sign) => sign.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  if (map.bytes === 1) return raw;
  const ids = new Uint16Array(size[0] * size[1]);
  for (let i = 0; i < ids.length; i++) ids[i] = raw[2 * i] + 256 * raw[2 * i + 1];
  return ids;
}

// The map without the things less sure than `sure`: what lay below them was less sure still.
function above(map, ids, sure) {
  const hidden = map.scores.map((score, i) => map.things[i] && score < sure);
  const labels = map.labels.map((label, i) => (hidden[i] ? NONE : label));
  const table = Uint16Array.from(labels, (_, i) => (hidden[i] ? 0 : i));
  return { ...map, labels, ids: hidden.includes(true) ? ids.map((id) => table[id]) : ids };
}

// Of each pixel the kind of its error, as zoo.report.visualize.errors has them: 255 is right or does not count.
function errorKinds(truth, made) {
  const wide = made.labels.length;
  const both = new Uint32Array(truth.labels.length * wide);
  for (let p = 0; p < truth.ids.length; p++) both[truth.ids[p] * wide + made.ids[p]]++;
  const ofTruth = new Float64Array(truth.labels.length), ofMade = new Float64Array(wide);
  both.forEach((count, i) => { ofTruth[Math.floor(i / wide)] += count; ofMade[i % wide] += count; });
  const table = Uint8Array.from(both, (count, i) => {
    const t = Math.floor(i / wide), m = i % wide, a = truth.labels[t], b = made.labels[m];
    if (truth.striped[t]) return 255;
    if (a !== b) return b === NONE ? 2 : a === NONE ? 3 : 0;
    const matched = 2 * count > ofTruth[t] + ofMade[m] - count;
    return matched || !(truth.things[t] && made.things[m]) ? 255 : 1;
  });
  return truth.ids.map !== undefined ? Uint8Array.from(truth.ids, (id, p) => table[id * wide + made.ids[p]]) : null;
}

// A class's colour; each thing has a shade of its own.
function shade([red, green, blue], thing, id) {
  if (!thing) return [red, green, blue];
  const light = 0.72 + 0.5 * ((id * 0.754878) % 1), turn = 24 * (((id * 0.618034) % 1) - 0.5);
  return [red * light + turn, green * light - turn, blue * light + turn].map((c) => Math.max(0, Math.min(255, c)));
}

function viewer(place) {
  const holder = document.getElementById(`${place.dataset.key}-maps`);
  if (!holder) return;
  const data = JSON.parse(holder.textContent);
  const signs = $$(".signs > svg", place);
  const sign = (row) => signs[data.rows[row].place].cloneNode(true);
  const rows = data.rows.map((_, i) => i);
  const state = { image: 0, view: "prediction", opacity: 0.5, sure: data.sure, only: NONE, truth: false, scale: 1, x: 0, y: 0 };
  let order = data.images.map((_, i) => i);
  let painting = 0;

  // ------------------------------------------------------------ maps

  const decoded = new Map(); // the last few images
  function maps(index) {
    if (!decoded.has(index)) {
      const image = data.images[index];
      const all = [...Object.entries(image.truths), ...image.maps.map((map, row) => [row, map])];
      const promise = Promise.all(all.map(async ([key, map]) => [key, map, await inflate(map, image.size)]))
        .then((found) => Object.fromEntries(found.map(([key, map, ids]) => [key, { map, ids }])));
      decoded.set(index, promise);
      if (decoded.size > 6) decoded.delete(decoded.keys().next().value);
    }
    return decoded.get(index);
  }
  const made = (found, key) => above(found[key].map, found[key].ids, state.sure);
  const truthOf = (found, row) => made(found, row === "truth" ? data.finest : data.rows[row].task);

  // Where the models do not give one class; a map of objects says nothing where there is none, beside maps of all.
  function dissent(found) {
    const all = rows.map((row) => made(found, row));
    const mixed = new Set(data.rows.map((row) => row.task)).size > 1;
    const quiet = rows.map((row) => mixed && data.rows[row].task === "instance");
    return Uint8Array.from(all[0].ids, (_, p) => {
      let first;
      for (const row of rows) {
        const label = all[row].labels[all[row].ids[p]];
        if (label === NONE && quiet[row]) continue;
        if (first === undefined) first = label;
        else if (label !== first) return 1;
      }
      return 0;
    });
  }

  // Colours of one map, every `step`-th pixel, as the pixels of `canvas`.
  function paint(canvas, found, row, size, step = 1) {
    const [height, width] = size, wide = Math.ceil(width / step), high = Math.ceil(height / step);
    canvas.width = wide;
    canvas.height = high;
    const view = row === "truth" && state.view === "errors" ? "prediction" : state.view;
    if (view === "image" && !state.truth) return;
    const shown = row === "truth" || state.truth ? truthOf(found, row) : made(found, row);
    const picture = new ImageData(wide, high), pixels = picture.data;
    const errors = view === "errors" && !state.truth;
    const truth = errors ? truthOf(found, row) : null;
    const kinds = errors ? errorKinds(truth, shown) : null;
    const differ = view === "disagreement" && !state.truth && rows.length > 1 ? dissent(found) : null;
    const colors = shown.labels.map((label, id) => (label === NONE ? null : shade(data.classes[label][1], shown.things[id], id)));
    for (let y = 0, to = 0; y < high; y++) {
      for (let x = 0; x < wide; x++, to += 4) {
        const p = y * step * width + x * step, id = shown.ids[p], label = shown.labels[id];
        let color = null;
        if (errors) {
          const kind = kinds[p];
          if (kind !== 255 && (state.only === NONE || label === state.only || truth.labels[truth.ids[p]] === state.only)) color = data.wrong[kind][1];
        } else if (shown.striped[id] && label === NONE) {
          color = ((x + y) * step) % 8 < 2 ? [120, 120, 120, 255] : [20, 20, 20, 120];
        } else if (colors[id] && (state.only === NONE || label === state.only) && (!differ || differ[p])) {
          const right = x + 1 < wide ? shown.ids[p + step] : id, below = y + 1 < high ? shown.ids[p + step * width] : id;
          const edge = step === 1 && !differ && (right !== id || below !== id)
            && (shown.things[id] || shown.things[right] || shown.things[below]);
          color = edge ? [255, 255, 255] : colors[id];
        }
        if (color) { pixels[to] = color[0]; pixels[to + 1] = color[1]; pixels[to + 2] = color[2]; pixels[to + 3] = color[3] ?? 255; }
      }
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }

  // ------------------------------------------------------------ controls

  const radio = VIEWS.map(([name, what], i) => {
    const input = element("input", { type: "radio", name: `${place.dataset.key}-view`, value: name, checked: i === 0,
      onchange: () => { state.view = name; refresh(); } });
    return element("label", { title: `${what} (key ${i + 1})` }, input, name);
  });
  const slider = (name, value, change, title) => element("label", { title }, `${name} `,
    element("input", { type: "range", min: 0, max: 1, step: 0.05, value, class: name, oninput: (event) => change(Number(event.target.value)) }));
  const opacity = slider("opacity", state.opacity, (value) => { state.opacity = value; restyle(); }, "keys [ and ]");
  const scored = data.images.some((image) => image.maps.some((map) => map.scores.some((s, i) => map.things[i] && s < 1)));
  const sureness = element("output", {}, state.sure.toFixed(2));
  const sure = slider("score", state.sure, (value) => { state.sure = value; sureness.textContent = value.toFixed(2); refresh(); },
    "objects less sure than this are left out");
  sure.append(sureness);
  const only = element("select", { class: "only", onchange: () => { state.only = Number(only.value); arrange(); if (order.includes(state.image)) refresh(); else choose(order[0]); } },
    element("option", { value: NONE }, "all classes"), ...data.classes.map(([name], i) => element("option", { value: i }, name)));
  const names = (label) => element("select", { "aria-label": label, hidden: true, onchange: () => { arrange(); choose(order[0]); } },
    ...data.rows.map((row, i) => element("option", { value: i }, row.name)));
  const mine = names("model"), theirs = names("other model"), than = element("span", { hidden: true }, "beats");
  if (rows.length > 1) theirs.value = "1";
  const sorts = [["disagreement", rows.length > 1 ? "largest disagreement" : "most errors"], ["order", "order of the data set"], ["worst", "worst for"]];
  if (rows.length > 1) sorts.push(["beats", "one beats another"]);
  const sorting = element("select", { class: "sorting", onchange: () => { arrange(); choose(order[0]); } },
    ...sorts.map(([value, text]) => element("option", { value }, text)));
  const zooms = [["−", 1 / 1.5, "zoom out (-)"], ["+", 1.5, "zoom in (+)"], ["1:1", 0, "whole image (0)"]].map(([text, factor, title]) =>
    element("button", { type: "button", title, "aria-label": title, onclick: () => zoom(factor) }, text));
  const whole = element("button", { type: "button", class: "whole", title: "full screen (f)", onclick: () => fullscreen() }, "full screen");
  const toolbar = element("div", { class: "toolbar", role: "group", "aria-label": "what the viewer shows" },
    element("fieldset", { class: "views" }, element("legend", {}, "show"), ...radio), opacity, scored ? sure : null,
    element("label", {}, "class ", only), element("label", {}, "sort ", sorting), mine, than, theirs,
    element("span", { class: "zooms" }, ...zooms, whole));

  // ------------------------------------------------------------ the large image

  const title = element("h4", { "aria-live": "polite" });
  const step = (by, text, label) => element("button", { type: "button", "aria-label": label, onclick: () => move(by) }, text);
  const tiles = ["truth", ...rows].map((row) => {
    const picture = element("img", { alt: "", draggable: "false" }), canvas = element("canvas");
    const layers = element("div", { class: "layers" }, picture, canvas);
    const score = element("output", { class: "value" }), read = element("output", { class: "read" });
    const frame = element("div", { class: "frame" }, layers);
    const head = row === "truth" ? element("b", {}, "truth") : element("b", {}, sign(row), " ", data.rows[row].name);
    const tile = element("figure", { class: "tile", "data-row": row === "truth" ? null : signNumber(row) },
      element("figcaption", {}, head, " ", score, read), frame);
    return { row, picture, canvas, layers, score, read, frame, tile };
  });
  function signNumber(row) { return data.rows[row].place; }
  const legend = element("ul", { class: "legend chips" });
  const stage = element("div", { class: "stage", tabindex: 0, role: "group", "aria-label": "masks; arrow keys step through the images" },
    ...tiles.map((tile) => tile.tile));
  const hint = element("p", { class: "note keys" },
    "Keys: ← → images, 1–4 views, hold T for the truth in every tile, + − 0 zoom, [ ] opacity, F full screen. Drag to pan, double click or Ctrl + wheel to zoom.");
  function layout() { // rows of tiles that are full; on the full screen the columns that make tiles largest
    const wide = body.clientWidth, count = tiles.length, full = document.fullscreenElement === body;
    const [height, width] = data.images[state.image].size;
    let columns = Math.ceil(count / Math.ceil(count / Math.max(1, Math.floor(wide / (wide < 600 ? 150 : 215)))));
    const fits = (c) => Math.min(wide / c, ((innerHeight - 210) / Math.ceil(count / c) - 34) * (width / height));
    if (full) columns = tiles.map((_, i) => i + 1).reduce((best, c) => (fits(c) > fits(best) ? c : best));
    stage.style.setProperty("--columns", columns);
    stage.style.maxWidth = full ? `${columns * fits(columns)}px` : "";
  }
  const list = element("div", { class: "images", role: "group", "aria-label": "all images" });
  const count = element("p", { class: "note count" });
  const body = element("div", { class: "inside" }, toolbar,
    element("div", { class: "steps" }, step(-1, "‹", "previous image"), step(1, "›", "next image"), title), stage, legend, hint);
  place.append(body, count, list);
  new ResizeObserver(layout).observe(body);

  async function show() {
    const token = ++painting, image = data.images[state.image], found = await maps(state.image);
    if (token !== painting) return; // another image was asked for meanwhile
    const at = order.indexOf(state.image);
    title.textContent = `${image.name}  ${at >= 0 ? `(${at + 1} of ${order.length})` : ""}`;
    for (const { row, picture, canvas, score, tile } of tiles) {
      const source = `data:image/jpeg;base64,${image.jpeg}`;
      if (picture.src !== source) picture.src = source;
      picture.alt = row === "truth" ? `image ${image.name}` : "";
      tile.style.setProperty("--ratio", `${image.size[1]} / ${image.size[0]}`);
      score.textContent = row === "truth" ? "" : percent(image.scores[row]);
      score.title = row === "truth" ? "" : `${data.score} of this image`;
      paint(canvas, found, row, image.size);
    }
    restyle();
    legends(found);
    $$(".row", list).forEach((row) => row.classList.toggle("current", Number(row.dataset.image) === state.image));
    place.dataset.shown = `${image.name} ${state.view}`;
  }

  const percent = (value) => (value === null ? "–" : (100 * value).toFixed(1));

  function restyle() {
    const plain = state.view === "errors" && !state.truth;
    for (const { canvas, picture, layers, row } of tiles) {
      const errors = plain && row !== "truth";
      canvas.style.opacity = errors ? Math.max(state.opacity, 0.75) : state.opacity;
      picture.classList.toggle("grey", errors);
      layers.style.transform = `translate(${state.x}px, ${state.y}px) scale(${state.scale})`;
    }
    list.style.setProperty("--opacity", state.opacity);
    stage.dataset.scale = state.scale.toFixed(2);
  }

  function legends(found) {
    if (state.view === "errors" && !state.truth) {
      const kinds = data.rows.every((row) => row.task === "semantic") ? data.wrong.slice(0, 1) : data.wrong;
      legend.replaceChildren(...kinds.map(([name, color]) => element("li", {}, swatch(color), name)));
      return;
    }
    const counts = new Map();
    for (const key of [data.finest, ...rows]) {
      const map = made(found, key), seen = new Uint32Array(map.labels.length);
      for (const id of map.ids) seen[id]++;
      seen.forEach((pixels, id) => { if (pixels && map.labels[id] !== NONE) counts.set(map.labels[id], (counts.get(map.labels[id]) || 0) + pixels); });
    }
    const present = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 40).map(([label]) => label);
    legend.replaceChildren(...present.map((label) => element("li", {}, element("button", { type: "button", "aria-pressed": String(state.only === label),
      title: "show this class alone", onclick: () => { only.value = state.only === label ? NONE : label; only.dispatchEvent(new Event("change")); } },
    swatch(data.classes[label][1]), data.classes[label][0]))));
  }

  function swatch(color) {
    const made = element("span", { class: "swatch", "aria-hidden": "true" });
    made.style.backgroundColor = `rgb(${color.join(" ")})`;
    return made;
  }

  // ------------------------------------------------------------ all images

  const thumbs = new Map(); // rows of the list in sight
  const sight = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (entry.isIntersecting) { thumbs.set(entry.target, true); thumbnail(entry.target); } else thumbs.delete(entry.target);
  }), { rootMargin: "150px" });

  function line(index) {
    const image = data.images[index], step = Math.max(1, Math.round(Math.max(...image.size) / 200));
    const cell = (row) => {
      const source = element("img", { src: `data:image/jpeg;base64,${image.jpeg}`, alt: "", loading: "lazy" });
      const layers = element("span", { class: "layers" }, source, element("canvas", { "data-of": row, "data-step": step }));
      layers.style.setProperty("--ratio", `${image.size[1]} / ${image.size[0]}`);
      return element("span", { class: row === "truth" ? "cell truth" : "cell" }, layers, element("small", {}, row === "truth" ? "truth" : sign(row), row === "truth" ? "" : ` ${percent(image.scores[row])}`));
    };
    const text = element("span", { class: "about" }, element("b", {}, image.name),
      element("small", { title: rows.length > 1 ? "pixels to which not all models give one class" : "pixels that are wrong" },
        `${(100 * image.disagreement).toFixed(1)} % ${rows.length > 1 ? "differ" : "wrong"}`));
    const button = element("button", { type: "button", class: "row", "data-image": index, onclick: () => { choose(index); stage.scrollIntoView({ block: "nearest" }); } },
      text, cell("truth"), ...rows.map(cell));
    button.setAttribute("aria-label", `show ${image.name}`);
    sight.observe(button);
    return button;
  }

  async function thumbnail(button) {
    const index = Number(button.dataset.image), found = await maps(index);
    for (const canvas of $$("canvas", button)) {
      const row = canvas.dataset.of === "truth" ? "truth" : Number(canvas.dataset.of);
      paint(canvas, found, row, data.images[index].size, Number(canvas.dataset.step));
    }
    button.classList.toggle("grey", state.view === "errors");
  }

  function arrange() {
    const two = sorting.value === "beats";
    mine.hidden = !two && sorting.value !== "worst";
    than.hidden = theirs.hidden = !two;
    const a = Number(mine.value), b = Number(theirs.value);
    const key = (i) => {
      const image = data.images[i], own = image.scores[a], other = image.scores[b];
      if (sorting.value === "order") return image.index;
      if (sorting.value === "worst") return own === null ? Infinity : own;
      if (two) return own === null || other === null ? Infinity : other - own;
      return -image.disagreement;
    };
    const has = (image) => state.only === NONE || [...Object.values(image.truths), ...image.maps].some((map) => map.labels.includes(state.only));
    order = data.images.map((_, i) => i).filter((i) => has(data.images[i])).sort((i, j) => key(i) - key(j));
    sight.disconnect();
    thumbs.clear();
    list.replaceChildren(...order.map(line));
    count.textContent = `${order.length} of ${data.images.length} images. The number below a map is ${data.score} on that image, in percent.`;
  }

  // ------------------------------------------------------------ moving about

  function refresh() { show(); [...thumbs.keys()].forEach(thumbnail); }
  function choose(index) { if (index !== undefined) { state.image = index; show(); } }
  function move(by) {
    if (order.length) choose(order[(Math.max(order.indexOf(state.image), 0) + by + order.length) % order.length]);
  }
  function zoom(factor, at) {
    const { clientWidth: width, clientHeight: height } = tiles[0].frame;
    const [x, y] = at || [width / 2, height / 2];
    const scale = factor ? Math.min(32, Math.max(1, state.scale * factor)) : 1;
    state.x = x - (x - state.x) * (scale / state.scale);
    state.y = y - (y - state.y) * (scale / state.scale);
    state.scale = scale;
    pan(0, 0);
  }
  function pan(dx, dy) { // the image never leaves its frame
    const { clientWidth: width, clientHeight: height } = tiles[0].frame;
    state.x = Math.min(0, Math.max(width * (1 - state.scale), state.x + dx));
    state.y = Math.min(0, Math.max(height * (1 - state.scale), state.y + dy));
    restyle();
  }
  function fullscreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else if (body.requestFullscreen) body.requestFullscreen().catch(() => body.classList.toggle("large"));
  }

  for (const { frame, row } of tiles) {
    const at = (event) => { const box = frame.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    frame.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey && !document.fullscreenElement) return;
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 300), at(event));
    }, { passive: false });
    frame.addEventListener("dblclick", (event) => zoom(2, at(event)));
    frame.addEventListener("pointerdown", (event) => { if (event.button === 0) frame.setPointerCapture(event.pointerId); });
    frame.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) pan(event.movementX, event.movementY);
      readout(at(event), frame);
    });
    frame.addEventListener("pointerleave", () => tiles.forEach((tile) => { tile.read.textContent = ""; }));
  }

  // The class under the pointer, in every tile.
  async function readout([x, y], frame) {
    const [height, width] = data.images[state.image].size, found = await maps(state.image);
    const column = Math.floor(((x - state.x) / state.scale) * (width / frame.clientWidth));
    const line = Math.floor(((y - state.y) / state.scale) * (height / frame.clientHeight));
    if (column < 0 || line < 0 || column >= width || line >= height) return;
    for (const { row, read } of tiles) {
      const map = row === "truth" ? truthOf(found, row) : made(found, row), id = map.ids[line * width + column], label = map.labels[id];
      const name = label === NONE ? (map.striped[id] ? "void" : "nothing") : data.classes[label][0];
      read.textContent = map.things[id] && map.scores[id] < 1 ? `${name} ${map.scores[id].toFixed(2)}` : name;
    }
  }

  const keys = {
    ArrowRight: () => move(1), ArrowLeft: () => move(-1), "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => zoom(0),
    "[": () => fade(-0.1), "]": () => fade(0.1), f: () => fullscreen(),
    ...Object.fromEntries(VIEWS.map((_, i) => [i + 1, () => $("input", radio[i]).click()])),
  };
  function fade(by) {
    state.opacity = Math.min(1, Math.max(0, state.opacity + by));
    $("input", opacity).value = state.opacity;
    restyle();
  }
  let over = false;
  place.addEventListener("pointerenter", () => { over = true; });
  place.addEventListener("pointerleave", () => { over = false; });
  const meant = (event) => (over || place.contains(document.activeElement)) && !event.ctrlKey && !event.metaKey && !event.altKey
    && !event.target.closest?.("input:not([type=radio]), select, textarea");
  document.addEventListener("keydown", (event) => {
    if (!meant(event)) return;
    if (event.key === "t" || event.key === "T") { if (!state.truth) { state.truth = true; show(); } return; }
    const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (action) { event.preventDefault(); action(); }
  });
  document.addEventListener("keyup", (event) => {
    if ((event.key === "t" || event.key === "T") && state.truth) { state.truth = false; show(); }
  });

  arrange();
  choose(order[0]);
}

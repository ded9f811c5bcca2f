// The part of the report where prompts are explored. Plain JavaScript; it asks for nothing outside the page, and
// whatever a model or a data set wrote goes in by textContent alone.
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const REACH = 28; // pixels from a point at which it is still meant
  const part = (name) => document.getElementById(`explore-${name}`);
  const data = JSON.parse(part("data").textContent);
  const prompts = data.prompts.sort((a, b) => a.dispersion - b.dispersion);
  const [outcome, policy, minus, low, high] = ["outcome", "policy", "minus", "low", "high"].map(part);
  const NOTHING = -1;
  let points = []; // of the drawn prompts: {prompt, x, y, value, inside}
  let chosen = null; // the prompt whose texts are shown
  let held = false;

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function drawn(name, attributes, parent, text) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return parent.appendChild(made);
  }

  function told(value, signed) {
    if (value === null) return "–";
    const text = String(Number(value.toPrecision(3))).replace("-", "−");
    return signed && value > 0 ? `+${text}` : text;
  }

  function valueOf(prompt, at) {
    return at === NOTHING ? 0 : prompt.values[outcome.value][at];
  }

  function plotted(prompt) {
    const [mine, other] = [valueOf(prompt, Number(policy.value)), valueOf(prompt, Number(minus.value))];
    return mine === null || other === null ? null : mine - other;
  }

  function inRange(prompt) {
    return prompt.dispersion >= Number(low.value) && prompt.dispersion <= Number(high.value);
  }

  // Round numbers that a scale is marked with.
  function ticks(from, to, most) {
    const rough = (to - from) / most;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((times) => times * power).find((width) => width >= rough);
    const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const found = [];
    for (let count = Math.ceil(from / step - 1e-9); count * step <= to + 1e-9 * step; count += 1) {
      const value = count * step;
      found.push([value, value.toFixed(Math.min(decimals, 12)).replace(/^-(?=0(\.0*)?$)/, "").replace("-", "−")]);
    }
    return found;
  }

  function span(values, share) {
    let [from, to] = [Infinity, -Infinity];
    for (const value of values) [from, to] = [Math.min(from, value), Math.max(to, value)];
    const room = (to - from) * share || Math.abs(to) * share || share;
    return [from - room, to + room];
  }

  function scale([from, to], begin, end) {
    return (value) => begin + ((value - from) / (to - from)) * (end - begin);
  }

  function title() {
    const [mine, other] = [Number(policy.value), Number(minus.value)];
    const against = other === NOTHING ? "" : ` minus ${data.policies[other].name}`;
    return `${data.outcomes[outcome.value]}: ${data.policies[mine].name}${against}`;
  }

  function drawAxes(svg, box, xs, ys) {
    const [x, y] = [scale(xs, box.left, box.right), scale(ys, box.bottom, box.top)];
    for (const [value, text] of ticks(...ys, 7)) {
      const line = { x1: box.left, x2: box.right, y1: y(value), y2: y(value) };
      drawn("line", { ...line, class: value === 0 ? "zero" : "grid" }, svg);
      drawn("text", { x: box.left - 6, y: y(value) + 4, "text-anchor": "end" }, svg, text);
    }
    for (const [value, text] of ticks(...xs, Math.max(3, Math.floor((box.right - box.left) / 60)))) {
      drawn("line", { x1: x(value), x2: x(value), y1: box.top, y2: box.bottom, class: "grid" }, svg);
      drawn("text", { x: x(value), y: box.bottom + 18, "text-anchor": "middle" }, svg, text);
    }
    const middle = (box.left + box.right) / 2;
    drawn("text", { x: middle, y: box.bottom + 36, "text-anchor": "middle" }, svg, "dispersion index of the prompt");
    drawn("text", { x: 2, y: 14 }, svg, title());
    return [x, y];
  }

  function draw() {
    const plot = part("plot");
    const style = getComputedStyle(plot);
    const width = plot.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    if (width <= 0) return;
    const height = Math.round(Math.min(420, Math.max(280, 0.68 * width)));
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("aria-hidden", "true");
    const box = { left: 52, right: width - 12, top: 28, bottom: height - 44 };
    const known = prompts.filter((prompt) => plotted(prompt) !== null);
    points = [];
    if (known.length) {
      const xs = span(prompts.map((prompt) => prompt.dispersion), 0.04);
      const even = Number(minus.value) === NOTHING ? [] : [0];
      const [x, y] = drawAxes(svg, box, xs, span([...known.map(plotted), ...even], 0.06));
      const colour = data.policies[policy.value].colour;
      points = known.map((prompt) => {
        const value = plotted(prompt);
        return { prompt, value, x: x(prompt.dispersion), y: y(value), inside: inRange(prompt) };
      });
      // Those inside last, so that they lie on top.
      for (const point of [...points].sort((a, b) => a.inside - b.inside)) {
        const place = { cx: point.x, cy: point.y, r: point.inside ? 5 : 3.5 };
        drawn("circle", point.inside ? { ...place, class: "in", fill: colour } : { ...place, class: "out" }, svg);
      }
    }
    plot.replaceChildren(svg);
    const inside = points.filter((point) => point.inside).length;
    part("range").textContent = `${told(Number(low.value))} to ${told(Number(high.value))}`;
    part("count").textContent = known.length
      ? `${inside} of ${known.length} prompts are in this range.`
      : `Nothing to draw: one of the two policies has no values of "${data.outcomes[outcome.value]}".`;
    mark();
  }

  function mark() {
    const svg = part("plot").querySelector("svg");
    svg?.querySelector(".ring")?.remove();
    const point = points.find((one) => one.prompt === chosen);
    if (svg && point) drawn("circle", { cx: point.x, cy: point.y, r: 8, class: "ring" }, svg);
  }

  function answerOf(prompt, at) {
    const heading = element("h4");
    const chip = element("span", data.policies[at].name, "chip");
    const dot = element("i");
    dot.style.background = data.policies[at].colour;
    chip.prepend(dot);
    heading.append(chip, element("small", `${data.outcomes[outcome.value]} ${told(valueOf(prompt, at))}`));
    const text = element("p", prompt.answers[at], "model-text");
    text.dir = "auto";
    return [heading, text];
  }

  function tell() {
    const card = part("prompt");
    if (!chosen) {
      card.replaceChildren(element("p", "Point at a prompt, or step through them with the buttons.", "note"));
      return;
    }
    const heading = element("h4", "Prompt");
    const difference = plotted(chosen);
    const paired = Number(minus.value) !== NOTHING && difference !== null;
    const number = paired ? `, difference ${told(difference, true)}` : "";
    heading.append(element("small", `dispersion index ${told(chosen.dispersion)}${number}`));
    const text = element("p", chosen.text, "model-text prompt");
    text.dir = "auto";
    const first = [Number(policy.value), Number(minus.value)].filter((at) => at !== NOTHING);
    const others = data.policies.map((_, at) => at).filter((at) => !first.includes(at));
    card.replaceChildren(heading, text, ...[...new Set(first)].flatMap((at) => answerOf(chosen, at)));
    if (others.length) {
      const more = element("details");
      more.append(element("summary", `The other ${others.length === 1 ? "policy" : `${others.length} policies`}`));
      for (const at of others) more.append(...answerOf(chosen, at));
      card.append(more);
    }
    card.scrollTop = 0;
  }

  function choose(prompt) {
    if (prompt === chosen) return;
    chosen = prompt;
    mark();
    tell();
  }

  function hold(now) {
    held = now && chosen !== null;
    part("hold").setAttribute("aria-pressed", String(held));
  }

  function nearest(event) {
    const box = part("plot").querySelector("svg").getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let best = null;
    let distance = REACH;
    for (const point of points) {
      const away = Math.hypot(point.x - x, point.y - y);
      if (point.inside && away < distance) [best, distance] = [point, away];
    }
    return best;
  }

  function step(by) {
    const inside = points.filter((point) => point.inside).map((point) => point.prompt);
    if (!inside.length) return;
    const last = inside.length - 1;
    const at = inside.indexOf(chosen);
    const next = at < 0 ? (by > 0 ? 0 : last) : at + by;
    choose(inside[by === -Infinity ? 0 : Math.min(last, Math.max(0, next))]);
  }

  function option(select, text, value) {
    const made = element("option", text);
    made.value = value;
    select.append(made);
  }

  function fill() {
    data.outcomes.forEach((name, at) => option(outcome, name, at));
    option(minus, "nothing", NOTHING);
    data.policies.forEach(({ name }, at) => [policy, minus].forEach((select) => option(select, name, at)));
    const at = (name) => data.policies.findIndex((one) => one.name === name);
    minus.value = at(data.baseline);
    policy.value = data.policies.findIndex(({ name }, number) => number > 0 && name !== data.baseline);
    const [from, to] = [prompts[0].dispersion, prompts[prompts.length - 1].dispersion];
    for (const [input, value] of [[low, from], [high, to]]) {
      Object.assign(input, { min: from, max: to, step: "any" });
      input.value = value;
    }
  }

  function listen() {
    for (const input of [outcome, policy, minus]) input.addEventListener("change", () => { draw(); tell(); });
    for (const [moved, other] of [[low, high], [high, low]]) {
      moved.addEventListener("input", () => {
        if (Number(low.value) > Number(high.value)) other.value = moved.value;
        draw();
      });
    }
    const plot = part("plot");
    plot.addEventListener("pointermove", (event) => {
      const point = held ? null : nearest(event);
      if (point) choose(point.prompt);
    });
    plot.addEventListener("click", (event) => {
      const point = nearest(event);
      const again = held && point && point.prompt === chosen;
      if (point) choose(point.prompt);
      hold(point !== null && !again);
    });
    const keys = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    plot.addEventListener("keydown", (event) => {
      if (event.key in keys) step(keys[event.key]);
      else if (event.key === "Enter") hold(!held);
      else if (event.key === "Escape") hold(false);
      else return;
      event.preventDefault();
    });
    part("previous").addEventListener("click", () => step(-1));
    part("next").addEventListener("click", () => step(1));
    part("hold").addEventListener("click", () => hold(!held));
    // In a frame of its own: drawing changes the height of what is observed.
    new ResizeObserver(() => requestAnimationFrame(draw)).observe(plot.parentElement);
  }

  fill();
  listen();
  part("tool").hidden = false;
  draw();
  tell();
})();

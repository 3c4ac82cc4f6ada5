// Charts as SVG, made of elements: nothing that comes from events is ever parsed as markup.

const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Lines over slots. lines: [{name, kind, values}], values may hold null; kind is the CSS class that draws it. */
export function lineChart(title, numbers, lines, xLabel) {
  const width = Math.max(320, Math.min(1100, document.documentElement.clientWidth - 32));
  const columns = width < 600 ? 2 : lines.length;
  const legend = 18 * Math.ceil(lines.length / columns);
  const [left, right, top, bottom] = [44, 12, 12, 48 + legend];
  const height = 230 + bottom;
  const known = lines.flatMap((line) => line.values).filter((value) => value !== null);
  const high = Math.max(1e-9, ...known) * 1.08;
  const low = Math.min(0, ...known);
  const [first, last] = [numbers[0] ?? 0, numbers.at(-1) ?? 1];
  const x = (number) => left + ((number - first) / Math.max(1, last - first)) * (width - left - right);
  const y = (value) => top + (1 - (value - low) / (high - low)) * (height - top - bottom);
  const words = lines.map((line) => `${line.name}: ${number(line.values.findLast((value) => value !== null) ?? null)}`);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}. Latest: ${words.join("; ")}` });
  for (let step = 0; step <= 4; step += 1) {
    const value = low + ((high - low) * step) / 4;
    svg.append(shape("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "axis" }));
    svg.append(shape("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end", class: "soft" }, value.toFixed(1)));
  }
  const every = Math.max(1, Math.ceil((last - first) / (width / 60)));
  for (const at of numbers) {
    if ((at - first) % every === 0) {
      svg.append(shape("text", { x: x(at), y: height - bottom + 18, "text-anchor": "middle", class: "soft" }, at));
    }
  }
  svg.append(shape("text", { x: width - right, y: height - bottom + 34, "text-anchor": "end", class: "soft" }, xLabel));
  lines.forEach((line, index) => {
    for (const part of connected(numbers, line.values)) {
      const points = part.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`);
      if (points.length === 1) points.push(points[0]);
      svg.append(shape("polyline", { points: points.join(" "), class: `line ${line.kind}` }));
    }
    const at = left + (index % columns) * ((width - left) / columns);
    const down = height - legend + 8 + Math.floor(index / columns) * 18;
    svg.append(shape("line", { x1: at, x2: at + 26, y1: down - 4, y2: down - 4, class: `line ${line.kind}` }));
    svg.append(shape("text", { x: at + 32, y: down }, line.name));
  });
  return svg;
}

function connected(numbers, values) {
  const parts = [];
  let part = [];
  numbers.forEach((at, index) => {
    if (values[index] === null) {
      part = [];
    } else {
      if (!part.length) parts.push(part);
      part.push([at, values[index]]);
    }
  });
  return parts;
}

/** Bars of counts, each under its label. */
export function barChart(title, labels, counts) {
  const width = Math.max(320, Math.min(700, document.documentElement.clientWidth - 32));
  const [height, bottom, top] = [180, 26, 22];
  const total = counts.reduce((sum, count) => sum + count, 0);
  const most = Math.max(1, ...counts);
  const words = labels.map((label, index) => `${label}: ${total ? Math.round((100 * counts[index]) / total) : 0}%`);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}. ${words.join("; ")}` });
  const step = width / Math.max(1, counts.length);
  counts.forEach((count, index) => {
    const tall = ((height - top - bottom) * count) / most;
    svg.append(shape("rect", { x: index * step + 4, y: height - bottom - tall, width: step - 8, height: tall, class: "bar" }));
    const share = total ? `${Math.round((100 * count) / total)}%` : "";
    svg.append(shape("text", { x: (index + 0.5) * step, y: height - bottom - tall - 5, "text-anchor": "middle" }, share));
    svg.append(shape("text", { x: (index + 0.5) * step, y: height - 8, "text-anchor": "middle", class: "soft" }, labels[index]));
  });
  return svg;
}

export function number(value, digits = 3) {
  return value === null || value === undefined ? "unknown" : value.toLocaleString("en", { maximumFractionDigits: digits });
}

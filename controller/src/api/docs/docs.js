// Shows openapi.json: operations by tag, with parameters, bodies and schemas. Builds nodes, never HTML text.
"use strict";
const METHODS = ["get", "post", "put", "patch", "delete"];
let api;

function el(tag, props = {}, ...children) {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Text with `code` and [links](…) of our own descriptions.
function prose(text) {
  const nodes = [];
  for (const [i, piece] of (text || "").split("`").entries()) {
    if (i % 2) { nodes.push(el("code", {}, piece)); continue; }
    let rest = piece, match;
    while ((match = rest.match(/\[([^\]]+)\]\((\/[^)]*)\)/))) {
      nodes.push(rest.slice(0, match.index), el("a", { href: match[2] }, match[1]));
      rest = rest.slice(match.index + match[0].length);
    }
    nodes.push(rest);
  }
  return nodes;
}

// `instance_types` as a heading.
const title = (name) => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
const nameOf = (schema) => schema && schema.$ref ? schema.$ref.split("/").pop() : null;
const resolve = (schema) => nameOf(schema) ? api.components.schemas[nameOf(schema)] : schema;

function typeOf(schema) {
  if (!schema) return "any";
  if (nameOf(schema)) return nameOf(schema).replace(/^Page_/, "page of ");
  const some = schema.oneOf || schema.anyOf;
  if (some) return some.map(typeOf).join(" or ");
  if (schema.allOf) return schema.allOf.map(typeOf).join(" and ");
  if (schema.enum) return schema.enum.map((v) => JSON.stringify(v)).join(" | ");
  const type = Array.isArray(schema.type) ? schema.type.join(" or ") : schema.type || "any";
  if (type.startsWith("array")) return `list of ${typeOf(schema.items)}`;
  return schema.format ? `${type} (${schema.format})` : type;
}

function nested(schema) {
  if (!schema) return [];
  if (nameOf(schema)) return [nameOf(schema)];
  return [...(schema.oneOf || []), ...(schema.anyOf || []), ...(schema.allOf || []), schema.items].flatMap(nested);
}

function fieldsOf(schema, seen) {
  const whole = resolve(schema) || {};
  const table = el("table");
  const parts = whole.allOf ? whole.allOf.map(resolve) : [whole];
  for (const part of parts) {
    const needed = (name) => (part.required || []).includes(name);
    const fields = Object.entries(part.properties || {}).sort(([a], [b]) => needed(b) - needed(a));
    for (const [name, field] of fields) {
      const need = needed(name) ? el("span", { className: "need" }, " needed") : null;
      const cell = el("td", {}, el("span", { className: "type" }, typeOf(field)), " ", ...prose(field.description));
      for (const inner of nested(field)) {
        const target = api.components.schemas[inner];
        if (target && !seen.includes(inner) && (target.properties || target.allOf || target.oneOf)) {
          cell.append(schemaBox({ $ref: `#/components/schemas/${inner}` }, inner, [...seen, inner]));
        }
      }
      table.append(el("tr", {}, el("td", {}, el("code", {}, name), need), cell));
    }
  }
  for (const choice of whole.oneOf || []) {
    table.append(el("tr", {}, el("td", {}, "one of"), el("td", {}, el("span", { className: "type" }, typeOf(choice)), " ",
      ...prose(choice.description), choice.properties ? fieldsOf(choice, seen) : null)));
  }
  return table;
}

// The fields of a schema, made when they are first opened.
function schemaBox(schema, label, seen, open = false) {
  const box = el("details", {}, el("summary", {}, label));
  box.addEventListener("toggle", () => { if (box.open && box.children.length === 1) box.append(fieldsOf(schema, seen)); });
  box.open = open;
  return box;
}

function shape(schema, open = false) {
  return nested(schema).length ? schemaBox(schema, typeOf(schema), nested(schema), open)
    : el("span", { className: "type" }, typeOf(schema));
}

function row(name, need, ...cell) {
  const mark = need ? el("span", { className: "need" }, " needed") : null;
  return el("tr", {}, el("td", {}, el("code", {}, name), mark), el("td", {}, ...cell));
}

function parameterTable(parameters) {
  return el("table", {}, ...parameters.map((p) => row(p.name, p.required,
    el("span", { className: "type" }, `${p.in}, ${typeOf(p.schema)}`), " ", ...prose(p.description))));
}

// One line for each answer: what it means, and what comes with it.
function answerTable(responses) {
  return el("table", {}, ...Object.entries(responses).map(([status, { description, content }]) => row(
    status === "default" ? "4xx, 5xx" : status, false, el("span", {}, ...prose(description || "")),
    ...Object.entries(content || {}).flatMap(([media, { schema }]) => [el("span", { className: "type" }, ` ${media}`), shape(schema)]))));
}

function operation(path, method, op, shared) {
  const article = el("article", { id: op.operationId });
  const link = el("a", { className: "self", href: `#${op.operationId}`, title: "Link to this" },
    el("span", { className: `method ${method}` }, method), el("code", {}, path));
  article.append(el("h3", {}, link), el("p", {}, ...prose([op.summary, op.description].filter(Boolean).join(" "))));
  const parameters = [...(shared || []), ...(op.parameters || [])];
  if (parameters.length) article.append(el("h4", {}, "Parameters"), parameterTable(parameters));
  for (const [media, { schema }] of Object.entries((op.requestBody || {}).content || {})) {
    article.append(el("h4", {}, "Body ", el("span", { className: "type" }, media)), shape(schema, true));
  }
  article.append(el("h4", {}, "Answers"), answerTable(op.responses));
  const media = Object.keys((op.requestBody || {}).content || {})[0];
  const body = !media ? "" : ` \\\n  -H 'Content-Type: ${media}' ${media.endsWith("json") ? "-d '{…}'" : "--data-binary @FILE"}`;
  article.append(el("details", {}, el("summary", {}, "curl"), el("pre", {},
    `curl --cacert ca.pem -X ${method.toUpperCase()} "${location.origin}${path}" \\\n  -H "Authorization: Bearer $KRING_TOKEN"${body}`)));
  return article;
}

// Marks in the index which operation is being read.
function follow() {
  const links = new Map([...document.querySelectorAll("a.op")].map((link) => [link.hash.slice(1), link]));
  const seen = new Set();
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) isIntersecting ? seen.add(target.id) : seen.delete(target.id);
    const first = [...links.keys()].find((id) => seen.has(id));
    for (const [id, link] of links) link.classList.toggle("here", id === first);
  }, { rootMargin: "-40px 0px -50% 0px" });
  document.querySelectorAll("article").forEach((article) => observer.observe(article));
}

function show() {
  const main = document.getElementById("main"), index = document.getElementById("index");
  document.getElementById("version").textContent = api.info.version;
  // On a narrow screen the index would be all that is seen.
  document.getElementById("contents").open = !matchMedia("(max-width: 50rem)").matches;
  const about = api.info.description.split("\n\n").map((text) => el("p", {}, ...prose(text)));
  main.replaceChildren(el("h1", {}, "Kring API"), ...about);
  for (const tag of api.tags) {
    const links = el("div", {}, el("h2", {}, title(tag.name)));
    const section = el("section", {}, el("h2", {}, title(tag.name)), el("p", {}, tag.description || ""));
    for (const [path, item] of Object.entries(api.paths)) {
      for (const method of METHODS.filter((m) => item[m] && item[m].tags.includes(tag.name))) {
        const op = item[method];
        section.append(operation(path, method, op, item.parameters));
        const link = el("a", { className: "op", href: `#${op.operationId}`, title: op.summary || "" },
          el("span", { className: `method ${method}` }, method), path.replace("/v1", ""));
        link.dataset.text = `${method} ${path} ${op.summary || ""} ${op.operationId}`.toLowerCase();
        links.append(link);
      }
    }
    index.append(links);
    main.append(section);
  }
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  follow();
}

document.getElementById("search").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const link of document.querySelectorAll("a.op")) {
    link.hidden = !words.every((word) => link.dataset.text.includes(word));
    const article = document.getElementById(link.hash.slice(1));
    if (article) article.hidden = link.hidden;
  }
  if (words.length) document.getElementById("contents").open = true;
  // A heading over nothing says nothing.
  for (const group of document.querySelectorAll("#index > div, main > section")) {
    group.hidden = !group.querySelector("a.op:not([hidden]), article:not([hidden])");
  }
});
document.addEventListener("keydown", (event) => {
  const search = document.getElementById("search");
  if (event.key === "/" && document.activeElement !== search) { event.preventDefault(); search.focus(); }
});
fetch("/v1/openapi.json").then((answer) => answer.json()).then((json) => { api = json; show(); })
  .catch((error) => { document.getElementById("main").textContent = `The description could not be loaded: ${error}`; });

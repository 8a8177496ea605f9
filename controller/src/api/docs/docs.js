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

const nameOf = (schema) => schema && schema.$ref ? schema.$ref.split("/").pop() : null;
const resolve = (schema) => nameOf(schema) ? api.components.schemas[nameOf(schema)] : schema;

function typeOf(schema) {
  if (!schema) return "any";
  if (nameOf(schema)) return nameOf(schema);
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
    for (const [name, field] of Object.entries(part.properties || {})) {
      const need = (part.required || []).includes(name) ? el("span", { className: "need" }, " needed") : null;
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
function schemaBox(schema, label, seen) {
  const box = el("details", {}, el("summary", {}, label));
  box.addEventListener("toggle", () => { if (box.open && box.children.length === 1) box.append(fieldsOf(schema, seen)); });
  return box;
}

function content(title, contents) {
  return Object.entries(contents || {}).map(([media, { schema }]) => el("div", {}, el("h4", {}, `${title} · ${media}`),
    nested(schema).length ? schemaBox(schema, typeOf(schema), nested(schema)) : el("span", { className: "type" }, typeOf(schema))));
}

function operation(path, method, op, shared) {
  const article = el("article", { id: op.operationId });
  article.append(el("h3", {}, el("span", { className: `method ${method}` }, method), el("code", {}, path)),
    el("p", {}, ...prose([op.summary, op.description].filter(Boolean).join(" "))));
  const parameters = [...(shared || []), ...(op.parameters || [])];
  if (parameters.length) {
    const table = el("table");
    for (const p of parameters) {
      table.append(el("tr", {}, el("td", {}, el("code", {}, p.name), p.required ? el("span", { className: "need" }, " needed") : null),
        el("td", {}, el("span", { className: "type" }, `${p.in}, ${typeOf(p.schema)}`), " ", ...prose(p.description))));
    }
    article.append(el("h4", {}, "Parameters"), table);
  }
  if (op.requestBody) article.append(...content("Body", op.requestBody.content));
  for (const [status, response] of Object.entries(op.responses)) {
    if (response.content) article.append(...content(`Answer ${status}`, response.content));
    else article.append(el("h4", {}, `Answer ${status}`), el("span", {}, response.description || ""));
  }
  const body = op.requestBody && op.requestBody.content["application/json"] ? ` \\\n  -H 'Content-Type: application/json' -d '{…}'` : "";
  article.append(el("details", {}, el("summary", {}, "curl"),
    el("pre", {}, `curl -X ${method.toUpperCase()} "${location.origin}${path}" \\\n  -H "Authorization: Bearer $KRING_TOKEN"${body}`)));
  return article;
}

function show() {
  const main = document.getElementById("main"), index = document.getElementById("index");
  document.getElementById("version").textContent = api.info.version;
  main.replaceChildren(el("p", { className: "intro" }, ...prose(api.info.description)));
  for (const tag of api.tags) {
    const links = el("div", {}, el("h2", {}, tag.name)), section = el("section", {}, el("h2", {}, tag.name), el("p", {}, tag.description || ""));
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
}

document.getElementById("search").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const link of document.querySelectorAll("a.op")) {
    link.hidden = !words.every((word) => link.dataset.text.includes(word));
    const article = document.getElementById(link.hash.slice(1));
    if (article) article.hidden = link.hidden;
  }
});
document.addEventListener("keydown", (event) => {
  const search = document.getElementById("search");
  if (event.key === "/" && document.activeElement !== search) { event.preventDefault(); search.focus(); }
});
fetch("/v1/openapi.json").then((answer) => answer.json()).then((json) => { api = json; show(); })
  .catch((error) => { document.getElementById("main").textContent = `The description could not be loaded: ${error}`; });

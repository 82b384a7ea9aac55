// The page at /docs: openapi.json as tables. Text is only ever set as textContent.
"use strict";

const $ = (id) => document.getElementById(id);

async function start() {
  const token = sessionStorage.getItem("recranker-token");
  $("problem").hidden = true;
  let reply;
  try {
    reply = await fetch("openapi.json", { headers: token ? { Authorization: `Bearer ${token}` } : {} });
  } catch {
    return complain("The service cannot be reached. Is it still running?");
  }
  $("token-form").hidden = reply.status !== 401;
  if (reply.status === 401) {
    $("token").focus();
    return complain(token ? "The service does not accept this token." : "Enter the token to go on.");
  }
  if (!reply.ok) return complain(`The service answered ${reply.status}.`);
  show(await reply.json());
}

function complain(text) {
  $("problem").textContent = text;
  $("problem").hidden = false;
}

function show({ paths, components }) {
  const routes = Object.entries(paths).flatMap(([path, methods]) => {
    return Object.entries(methods).map(([method, route]) => routeCard(method, path, route));
  });
  $("routes").replaceChildren(...routes);
  $("schemas").replaceChildren(...Object.entries(components.schemas).map(([name, schema]) => schemaCard(name, schema)));
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

function routeCard(method, path, route) {
  const title = make("h2", [make("span", method.toUpperCase()), ` ${path}`]);
  const parts = [title, words(route.description)];
  const sent = (route.parameters || []).map((one) => {
    return row(one.name, `in the ${one.in}, ${typeWords(one.schema)}`, one.description);
  });
  const body = route.requestBody && Object.entries(route.requestBody.content)[0];
  if (body) sent.push(row("body", [`${body[0]}: `, ...typeParts(body[1].schema)]));
  if (sent.length) parts.push(make("h3", "Takes"), make("table", sent));
  parts.push(make("h3", "Answers"), make("table", Object.entries(route.responses).map(answerRow)));
  return make("article", parts);
}

function answerRow([status, answer]) {
  const content = Object.entries(answer.content || {})[0];
  const schema = content && content[1].schema;
  return row(status, schema ? typeParts(schema) : content ? content[0] : "", answer.description);
}

function schemaCard(name, schema) {
  const required = new Set(schema.required || []);
  const fields = Object.entries(schema.properties || {}).map(([field, one]) => {
    const otherwise = required.has(field) ? ["; required"] : "default" in one ? [`; else ${JSON.stringify(one.default)}`] : [];
    return row(field, [...typeParts(one), ...otherwise], one.description);
  });
  const card = make("article", [make("h2", name), words(schema.description), make("table", fields)]);
  card.id = name;
  return card;
}

// ---------------------------------------------------------------- types in words

const BOUNDS = {
  minimum: "from", maximum: "to", minLength: "at least", maxLength: "at most", minItems: "at least", maxItems: "at most",
};

function typeParts(schema) {
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    const link = make("a", name);
    link.href = `#${name}`;
    return [link];
  }
  if (schema.anyOf) return schema.anyOf.flatMap((one, place) => [...(place ? [" or "] : []), ...typeParts(one)]);
  if (schema.enum) return [schema.enum.map((one) => JSON.stringify(one)).join(", ")];
  if ("const" in schema) return [JSON.stringify(schema.const)];
  const bounds = Object.entries(BOUNDS).filter(([key]) => key in schema).map(([key, word]) => `, ${word} ${schema[key]}`);
  if (schema.type === "array") return ["list of ", ...(schema.items ? typeParts(schema.items) : ["anything"]), ...bounds];
  if (schema.additionalProperties) return ["object of ", ...typeParts(schema.additionalProperties)];
  return [schema.type || "anything", ...bounds];
}

function typeWords(schema) {
  return make("i", typeParts(schema)).textContent;
}

function words(text) {
  const found = make("p", plain(text));
  found.className = "words";
  return found;
}

function row(name, type, text) {
  return make("tr", [make("td", name), make("td", type), make("td", plain(text))]);
}

function plain(text) {
  return (text || "").replaceAll("``", "");
}

function make(tag, children) {
  const element = document.createElement(tag);
  element.append(...(Array.isArray(children) ? children : [children]));
  return element;
}

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("recranker-token", $("token").value.trim());
  start();
});
start();

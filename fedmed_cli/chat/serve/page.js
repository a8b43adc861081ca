"use strict";
const at = (id) => document.getElementById(id);
const messages = [];
let running = null;

function headers() {
  const key = at("key").value;
  return { "content-type": "application/json", ...(key ? { authorization: "Bearer " + key } : {}) };
}

async function fail(reply) {
  if (reply.status === 401) at("key-row").hidden = false;
  let message = "status " + reply.status;
  try { message = (await reply.json()).error.message; } catch { /* not an error object */ }
  throw new Error(message);
}

async function loadModels() {
  const reply = await fetch("/v1/models", { headers: headers() });
  if (!reply.ok) await fail(reply);
  const models = (await reply.json()).data;
  at("model").replaceChildren(...models.map((model) => new Option(model.fedmed.name, model.id)));
}

function add(parent, tag, text, kind) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (kind) element.className = kind;
  parent.append(element);
  return element;
}

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function ask(question) {
  const turn = add(at("conversation"), "article", "");
  add(turn, "h2", "You asked");
  add(turn, "p", question);
  add(turn, "h2", "Answer");
  const answer = add(turn, "p", "");
  const body = { model: at("model").value, stream: true, messages: [...messages, { role: "user", content: question }] };
  const reply = await fetch("/v1/chat/completions", {
    method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal,
  });
  if (!reply.ok) await fail(reply);
  let said = "";
  for await (const chunk of events(reply)) {
    if (chunk.error) throw new Error(chunk.error.message);
    const choice = chunk.choices[0];
    const piece = choice?.delta.content ?? "";
    said += piece;
    const level = chunk.fedmed?.is_notice;
    if (level === "urgent") at("urgent").textContent = piece.trim();
    else if (level === "possible") add(turn, "p", piece.trim(), "note");
    else answer.textContent += piece;
    if (!choice?.finish_reason) continue;
    if (choice.finish_reason === "length") add(turn, "p", "(cut off)", "note");
    if (chunk.fedmed.held_back) answer.textContent = "No answer is given; please read the notice.";
    const quiet = [...chunk.fedmed.findings.filter((finding) => finding.level === "notice"), ...chunk.fedmed.answer_findings];
    for (const notice of new Set(quiet.map((finding) => finding.notice))) add(turn, "p", "Note: " + notice, "note");
    add(turn, "p", chunk.fedmed.adapter_name, "note");
  }
  messages.push({ role: "user", content: question }, { role: "assistant", content: said });
}

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!question || running) return;
  running = new AbortController();
  at("ask").disabled = true;
  at("stop").disabled = false;
  at("urgent").textContent = "";
  at("status").textContent = "Answering…";
  at("conversation").setAttribute("aria-busy", "true");
  try {
    if (!at("model").value) await loadModels();
    await ask(question);
    at("question").value = "";
    at("status").textContent = "Done.";
  } catch (error) {
    at("status").textContent = error.name === "AbortError" ? "Stopped." : "No answer: " + error.message;
  } finally {
    running = null;
    at("ask").disabled = false;
    at("stop").disabled = true;
    at("conversation").setAttribute("aria-busy", "false");
    at("question").focus();
  }
});
at("stop").addEventListener("click", () => running?.abort());
at("clear").addEventListener("click", () => {
  running?.abort();
  messages.length = 0;
  at("conversation").replaceChildren();
  at("urgent").textContent = "";
  at("status").textContent = "";
  at("question").focus();
});
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
});
loadModels().catch((error) => { at("status").textContent = error.message; });

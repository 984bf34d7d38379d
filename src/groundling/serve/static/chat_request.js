// Build completion requests and parse their choices, for chat models and base models.

// Turns with a valid reply. Blocked and failed turns are left out: with them, every later request would be rejected.
export function history(turns, model) {
  return turns.flatMap((turn) => {
    const reply = turn.replies.find((other) => other.model === model.id);
    return reply?.valid ? [{ prompt: turn.prompt, reply: reply.text }] : [];
  });
}

// [path, body] of the request.
export function completionRequest(model, turns, prompt, settings) {
  const body = { model: model.id, stream: true, temperature: Number(settings.temperature), top_p: Number(settings.top_p), max_tokens: Number(settings.max_tokens) };
  if (Number(settings.top_k) > 0) body.top_k = Number(settings.top_k);
  if (settings.seed !== "") body.seed = Number(settings.seed);
  const stop = settings.stop_sequences.split("\n").filter((line) => line !== "");
  if (stop.length) body.stop = stop;
  if (!model.groundling.chat) {
    const text = turns.map((turn) => `${turn.prompt}${turn.reply}\n`).join("") + prompt;
    return ["/v1/completions", { ...body, prompt: text, logprobs: 8 }];
  }
  const messages = settings.system_prompt ? [{ role: "system", content: settings.system_prompt }] : [];
  for (const turn of turns) messages.push({ role: "user", content: turn.prompt }, { role: "assistant", content: turn.reply });
  messages.push({ role: "user", content: prompt });
  return ["/v1/chat/completions", { ...body, messages, logprobs: true, top_logprobs: 8 }];
}

// Tokens of a choice, from either endpoint.
export function tokensOf(choice) {
  if (!choice.logprobs) return [];
  if (choice.logprobs.content) {
    return choice.logprobs.content.map((token) => ({
      text: token.token, bytes: token.bytes, logprob: token.logprob,
      alternatives: token.top_logprobs.map((other) => [other.token, other.logprob]),
    }));
  }
  const { tokens, token_logprobs: logprobs, top_logprobs: top } = choice.logprobs;
  return tokens.map((text, i) => ({
    text, bytes: null, logprob: logprobs[i], alternatives: Object.entries(top[i] ?? {}).sort((a, b) => b[1] - a[1]),
  }));
}

// What a model is asked: the conversation as it was for this model, in the form that it understands.

// Turns that a model has brought to a good end. What was blocked, failed or was never answered is not told it again:
// the whole conversation would be refused for it, each time.
export function past(turns, model) {
  return turns.flatMap((turn) => {
    const said = turn.speeches.find((speech) => speech.model === model.id);
    return said?.counts ? [{ words: turn.words, text: said.text }] : [];
  });
}

export function asked(model, before, words, set) {
  const body = { model: model.id, stream: true, temperature: Number(set.temperature), top_p: Number(set.top_p), max_tokens: Number(set.max_tokens) };
  if (Number(set.top_k) > 0) body.top_k = Number(set.top_k);
  if (set.seed !== "") body.seed = Number(set.seed);
  const stops = set.stops.split("\n").filter((line) => line !== "");
  if (stops.length) body.stop = stops;
  if (!model.groundling.chat) {
    const prompt = before.map((turn) => `${turn.words}${turn.text}\n`).join("") + words;
    return ["/v1/completions", { ...body, prompt, logprobs: 8 }];
  }
  const messages = set.system ? [{ role: "system", content: set.system }] : [];
  for (const turn of before) messages.push({ role: "user", content: turn.words }, { role: "assistant", content: turn.text });
  messages.push({ role: "user", content: words });
  return ["/v1/chat/completions", { ...body, messages, logprobs: true, top_logprobs: 8 }];
}

// New pieces of a choice as tokens, from either form of answer.
export function pieces(choice) {
  if (!choice.logprobs) return [];
  if (choice.logprobs.content) {
    return choice.logprobs.content.map((token) => ({
      text: token.token, bytes: token.bytes, logprob: token.logprob,
      likely: token.top_logprobs.map((other) => [other.token, other.logprob]),
    }));
  }
  const { tokens, token_logprobs: own, top_logprobs: top } = choice.logprobs;
  return tokens.map((text, i) => ({
    text, bytes: null, logprob: own[i], likely: Object.entries(top[i] ?? {}).sort((a, b) => b[1] - a[1]),
  }));
}

"""Run by a Python that has llama_cpp: what llama.cpp makes of a GGUF file, as one line of JSON.

llama_cpp_says.py '{"path": FILE, "texts": [...], "prompt": TEXT, "n_new": N, "n_ctx": N, "chats": [MESSAGES, ...]}'
"""

import json
import sys

from llama_cpp import Llama


def chat(llama: Llama, messages: list[dict[str, str]], n_new: int) -> dict[str, object]:
    answer = llama.create_chat_completion(messages, max_tokens=n_new, temperature=0.0, repeat_penalty=1.0)
    (choice,) = answer["choices"]
    return {
        "text": choice["message"]["content"],
        "why_it_ended": choice["finish_reason"],
        "n_prompt": answer["usage"]["prompt_tokens"],
    }


def main() -> None:
    asked = json.loads(sys.argv[1])
    # Keys and values in float32, and attention as it is written: nothing is rounded but what has to be.
    llama = Llama(asked["path"], n_ctx=asked["n_ctx"], n_threads=1, type_k=0, type_v=0, logits_all=True, verbose=False)
    # As the high-level calls do it: with whatever the file says belongs before and after a text.
    ids = [llama.tokenize(text.encode(), add_bos=True, special=True) for text in asked["texts"]]
    spoken = llama.create_completion(asked["prompt"], max_tokens=asked["n_new"], temperature=0.0, repeat_penalty=1.0)
    llama.reset()
    llama.eval(llama.tokenize(asked["prompt"].encode()))
    said = {
        "ids": ids,
        "texts": [llama.detokenize(row).decode() for row in ids],
        "spoken": spoken["choices"][0]["text"],
        "why_it_ended": spoken["choices"][0]["finish_reason"],
        "logits": llama.scores[: llama.n_tokens].tolist(),
        "end": llama.token_eos(),
        # By the template in the file, which is what its server does.
        "replies": [chat(llama, messages, asked["n_new"]) for messages in asked.get("chats", [])],
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()

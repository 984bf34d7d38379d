"""Run by a Python that has vLLM: what its server answers to conversations, as one line of JSON.

vllm_says.py '{"path": FOLDER, "n_new": N, "port": N, "chats": [MESSAGES, ...]}'
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

PATIENCE_S = 540.0


def ask(port: int, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        text = answer.read().decode()
    return json.loads(text) if text else None


def main() -> None:
    asked = json.loads(sys.argv[1])
    port = asked["port"]
    words = ["--model", asked["path"], "--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "2"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words]
    server = subprocess.Popen(command, env=environment, stdout=sys.stderr)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit("vLLM's server did not start")
            try:
                ask(port, "/health")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(1)
        replies = []
        for messages in asked["chats"]:
            body = {"model": "m", "messages": messages, "temperature": 0.0, "max_tokens": asked["n_new"]}
            answer = ask(port, "/v1/chat/completions", body)
            (choice,) = answer["choices"]
            replies.append(
                {
                    "text": choice["message"]["content"],
                    "why_it_ended": choice["finish_reason"],
                    "n_prompt": answer["usage"]["prompt_tokens"],
                }
            )
        print(json.dumps(replies))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()

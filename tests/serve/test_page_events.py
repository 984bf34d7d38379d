"""What the pages read of a stream: events, and not the comments by which a server tries a connection."""

import json
import shutil
import subprocess
from importlib import resources
from pathlib import Path

from playwright._impl._driver import compute_driver_executable

READS = """
globalThis.fetch = async () => new Response(SENT);
const { events } = await import("./api.js");
for await (const event of events("/v1/completions", {})) console.log(JSON.stringify(event));
"""


def test_comments_of_a_stream_are_skipped(tmp_path: Path) -> None:
    static = Path(str(resources.files("groundling.serve") / "static"))
    for name in ("api.js", "dom.js"):
        shutil.copy(static / name, tmp_path / name)
    (tmp_path / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    sent = ':\n\ndata: {"n":1}\n\n:\n\n:\n\ndata: {"n":2}\n\ndata: [DONE]\n\n'
    (tmp_path / "reads.js").write_text(READS.replace("SENT", json.dumps(sent)), encoding="utf-8")
    node = str(compute_driver_executable()[0])
    done = subprocess.run([node, "reads.js"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.split() == ['{"n":1}', '{"n":2}'], done.stderr

"""Row 54: a template in a bundle is not run, nor read. `import` alone renders one, in a process of its own."""

import shutil
from pathlib import Path

import pytest

import groundling
from servekit import TALK, serving


@pytest.mark.slow
def test_a_template_in_a_bundle_is_ignored(models, tmp_path) -> None:
    folder = tmp_path / "talker"
    shutil.copytree(models["talker"], folder)
    evil = "{{ cycler.__init__.__globals__.os.system('touch " + str(tmp_path / "ran") + "') }}"
    (folder / "chat_template.jinja").write_text(evil)
    (folder / "tokenizer_config.json").write_text('{"chat_template": "' + evil + '"}')
    with serving(folder, "--safety", "off") as server:
        status, _, _ = server.ask("POST", "/v1/chat/completions", {"model": "talker", "messages": [TALK]})
    assert status == 200
    assert not (tmp_path / "ran").exists()


def test_nothing_but_the_probe_of_an_import_renders_templates() -> None:
    for path in Path(groundling.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        renders = "import jinja2" in text or "from jinja2" in text
        assert renders == (path.name == "probe.py"), path
        assert "import probe" not in text, path
        assert "probe import" not in text, path

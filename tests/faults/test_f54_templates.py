"""Row 54: a template that comes with a model is not run, nor read: there is nothing here that could."""

import shutil
from pathlib import Path

import groundling
from servekit import TALK, serving


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


def test_the_package_renders_no_templates() -> None:
    for path in Path(groundling.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "import jinja2" not in text, path
        assert "from jinja2" not in text, path

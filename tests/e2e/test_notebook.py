"""The notebook that walks the ladder runs from top to bottom, and is kept without outputs."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "lecture.ipynb"


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call, no-any-return]


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


def test_it_is_kept_without_outputs() -> None:
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    assert cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


def test_it_defines_no_model() -> None:
    """It imports the rungs and repeats none."""
    assert not any("class " in cell.source for cell in read().cells if cell.cell_type == "code")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_runs(tmp_path: Path) -> None:
    notebook = read()
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    text = printed(notebook)
    assert "1,115,394 characters, 65 symbols" in text
    losses = dict(re.findall(r"^(s\d) .*? (\d\.\d\d)", text, re.MULTILINE))
    assert list(losses) == ["s1", "s2", "s3", "s4", "s5", "s6", "s7"]
    assert all(2.0 < float(loss) < 4.0 for loss in losses.values()), losses
    difference = re.search(r"the logits differ by at most (\S+)", text)
    assert difference
    assert float(difference[1]) <= 1e-5

"""matplotlib without a display: imported on use, figures saved atomically."""

import io
from pathlib import Path
from typing import Any

from groundling.storage import atomic
from groundling.system.optional import optional_import


def subplots(n_rows: int, n_columns: int, **options: Any) -> tuple[Any, Any]:
    """Like `matplotlib.pyplot.subplots`, without a display.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    size = options.pop("figsize", None)
    figure = optional_import("matplotlib.figure", "plot").Figure(figsize=size, layout="constrained")
    optional_import("matplotlib.backends.backend_agg", "plot").FigureCanvasAgg(figure)
    return figure, figure.subplots(n_rows, n_columns, **options)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as a PNG, atomically.

    Raises:
        StorageError: the file could not be written.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    atomic.write_bytes(path, picture.getvalue())

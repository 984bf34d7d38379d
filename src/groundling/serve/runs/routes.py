"""Training runs over HTTP: list, metrics, ladder results."""

from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query

from groundling.serve.http.errors import ApiError
from groundling.serve.runs.curves import DownsampledSeries, read_delta
from groundling.serve.runs.folders import METRICS, RunFolder, find_runs, ladder_of, run_info
from groundling.serve.state import ServerState

AT_ONCE = 4
"""Concurrent requests that read runs."""


def router(server: ServerState) -> APIRouter:
    """Routes of the training page."""
    routes = APIRouter(prefix="/v1/groundling/runs", tags=["runs"])

    known: dict[str, RunFolder] = {}
    reading = CapacityLimiter(AT_ONCE)  # leaves shared threads free if a disk hangs

    def runs() -> list[RunFolder]:
        nonlocal known
        served = {name: server.models.get(name).path for name in server.models.names()}
        known = find_runs(server.config.runs, served)
        return list(known.values())

    def find(name: str) -> RunFolder:
        if name not in known:
            runs()
        found = known.get(name)
        if found is None:
            raise ApiError(
                404, f"there is no run {name[:100]!r}; ask /v1/groundling/runs for their names", "no_run", "name"
            )
        return found

    @routes.get("")
    async def list_runs() -> dict[str, Any]:
        """List runs."""
        return {
            "object": "list",
            "data": await to_thread.run_sync(lambda: [run_info(run) for run in runs()], limiter=reading),
        }

    @routes.get("/{name:path}/metrics")
    async def metrics(
        name: str,
        after: Annotated[int, Query(ge=0, lt=2**53)] = 0,
        mark: Annotated[str | None, Query(max_length=64)] = None,
    ) -> dict[str, Any]:
        """Get the metrics of a run after byte `after`. To continue, send `next` as `after`, with `mark`."""
        return await to_thread.run_sync(lambda: _metrics(find(name), after, mark), limiter=reading)

    @routes.get("/{name:path}/ladder")
    async def ladder(name: str) -> dict[str, Any]:
        """Get the results of each rung of the ladder, with the lecture's."""
        return {"rungs": await to_thread.run_sync(lambda: ladder_of(find(name)), limiter=reading)}

    return routes


def _metrics(run: RunFolder, after: int, mark: str | None) -> dict[str, Any]:
    delta = read_delta(run.path / METRICS, after, mark)
    return {
        "name": run.name,
        "next": delta.after,
        "mark": delta.mark,
        "restarted": delta.restarted,
        "more": delta.more,
        "rows": delta.n_rows,
        "not_finite": delta.n_not_finite,
        "series": {name: _series(series) for name, series in delta.series.items()},
        "samples": delta.samples,
    }


def _series(series: DownsampledSeries) -> dict[str, Any]:
    steps, values = series.points()
    found: dict[str, Any] = {"step": steps, "value": values}
    if not series.is_whole:
        found["mean"] = dict(zip(("step", "value", "n"), series.means(), strict=True))
    return found

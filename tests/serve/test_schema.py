"""The server against its own description: what fits is taken, what does not is refused, and nothing breaks it."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from servekit import Served

pytestmark = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_generated_requests_never_cause_a_500(server: Served, mode: GenerationMode) -> None:
    described = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    described.config.checks.negative_data_rejection.expected_statuses = ["400", "404", "413", "414"]
    n_asked = 0
    for found in described.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.query or operation.body):
            continue  # nothing of it can be wrong

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
        )
        def ask(case) -> None:
            nonlocal n_asked
            n_asked += 1
            if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):  # what no schema can say
                if case.path.endswith("/xray"):
                    case.body = {**case.body, "messages": None, "prompt": case.body.get("prompt") or "a"}
                for field, needs in (("stream_options", "stream"), ("top_logprobs", "logprobs")):
                    if not case.body.get(needs):
                        case.body.pop(field, None)
            case.call_and_validate(timeout=20)
            if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "model" in case.body:
                # Now of a model that is there; what fits the description can still be too long for it.
                for name in ("base", "talker"):
                    case.body = {**case.body, "model": name}
                    case.call_and_validate(timeout=20, excluded_checks=[positive_data_acceptance])

        ask()
    assert n_asked >= 80
    assert server.ask("GET", "/ready")[0] == 200


def test_responses_match_the_schema(server: Served) -> None:
    paths = server.ask("GET", "/openapi.json")[1]["paths"]
    assert {"/v1/models", "/v1/completions", "/v1/chat/completions", "/health", "/ready"} <= set(paths)
    for path, operations in paths.items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path

"""`groundling align-report`: compare the stages on held-out prompts.

Replies of every model are sampled with several seeds, and compared with the fine-tuned model's by the gold measure.
Best-of-n sampling is the baseline: the reward model picks one of n replies of the fine-tuned model.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from groundling.align.report import page
from groundling.align.report.collect import (
    compare_rater,
    read_policy_rounds,
    read_reward_accuracy,
    read_stage_summary,
    read_training_records,
    training_seconds,
)
from groundling.align.report.config import ReportConfig
from groundling.align.report.policies import Evaluated, PolicyEvaluator
from groundling.align.report.schema import Example, Report, to_dict
from groundling.config import parse
from groundling.storage import atomic
from groundling.system.hardware import environment

log = logging.getLogger(__name__)

N_EXAMPLES = 12
"""Prompts whose replies are shown."""


def main(argv: Sequence[str]) -> int:
    """The verb `align-report`."""
    return align_report(parse(ReportConfig, argv, "groundling align-report"))


def align_report(config: ReportConfig) -> int:
    """Write the report; return the exit code.

    Raises:
        GroundlingError: any subclass.
    """
    atomic.make_folder(config.out_dir)
    report = build_report(config)
    atomic.write_json(config.out_dir / "report.json", to_dict(report))
    page.write(config.out_dir, report)
    log.info(f"the report: {config.out_dir / 'index.html'}")
    return 0


def build_report(config: ReportConfig) -> Report:
    """Evaluate all models, and collect what their runs recorded.

    Raises:
        GroundlingError: any subclass.
    """
    started = time.perf_counter()
    runs = [(folder, read_stage_summary(folder)) for folder in config.runs]
    unpenalised = [] if config.unpenalised is None else [(config.unpenalised, read_stage_summary(config.unpenalised))]
    over_optimisation = [read_policy_rounds(folder) for folder in (*dict(unpenalised), *config.over_optimised)]
    evaluator = PolicyEvaluator(config)
    found = [evaluator.base(config.base)] if config.base is not None else []
    found += evaluator.fine_tuned(training_seconds(Path(config.path)))
    for stage in dict.fromkeys(str(summary["stage"]) for _, summary in runs):
        found.append(evaluator.runs(stage.upper(), [run for run in runs if run[1]["stage"] == stage]))
    without_kl = [evaluator.runs(f"{str(run[1]['stage']).upper()} without KL", [run]) for run in unpenalised]
    for each in (*found, *without_kl):
        log.info(page.line(each.row))
    return Report(
        gold=config.gold,
        prompts=len(evaluator.prompts),
        seeds=list(config.seeds),
        environment=environment(),
        rows=[each.row for each in found],
        best_of=evaluator.best_of,
        without_kl=replace(without_kl[0].row, seconds=None) if without_kl else None,
        over_optimisation=over_optimisation,
        calibration=read_reward_accuracy(Path(config.reward)),
        rater=None if config.rankings is None else compare_rater(config),
        training_records=read_training_records([Path(config.path), *config.runs]),
        replies=_examples(evaluator, [*found, *without_kl]),
        wall_s=round(time.perf_counter() - started, 1),
    )


def _examples(evaluator: PolicyEvaluator, found: Sequence[Evaluated]) -> list[Example]:
    return [
        Example(evaluator.text(prompt), {each.row.name: each.replies[number].text for each in found})
        for number, prompt in enumerate(evaluator.prompts[:N_EXAMPLES])
    ]

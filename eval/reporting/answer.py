"""Answer the question of a sweep: rank its settings by a metric, and say in words which one leads and by how much."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from eval import metrics
from eval.intervals import student_interval, welch_interval
from eval.reporting.formatting import format_difference, format_exactly, format_interval, split_question
from eval.reporting.results import Sweep
from eval.reporting.seeds import Interval, Setting

Values = Mapping[str, float]  # seed → value of a metric
ENOUGH_SEEDS = 3  # with fewer, no lead is called clear: two seeds may agree to the last digit by chance
DOMAINS = ("dataset", "source", "target")
TERMINAL, LINES = 80, 10  # columns and lines of the answer in a terminal


class Comparison(NamedTuple):
    """The lead of a setting over another one; positive if it is better."""

    lead: float  # mean over the shared seeds, or difference of the means if fewer than two are shared
    interval: Interval | None  # 95 %; None if either setting has a single seed
    seeds: int  # shared seeds; 0 if the means of different seeds are compared

    @property
    def is_clear(self) -> bool:
        """Return whether the lead is larger than the noise over seeds; never of one or two seeds."""
        return self.interval is not None and self.interval[0] > 0 and (self.seeds == 0 or self.seeds >= ENOUGH_SEEDS)

    @property
    def words(self) -> str:
        """Return the lead, its interval and the verdict."""
        text = format_difference(self.lead)
        if self.interval is None:
            return f"{text}; one seed says nothing about the noise"
        how = f"paired over {self.seeds} seeds" if self.seeds else "over different seeds"
        return f"{text} {format_interval(self.interval)} {how}, {'more than' if self.is_clear else 'within'} the noise"


class Rule(NamedTuple):
    """By what settings are compared."""

    metric: str  # the main one, such as accuracy/target; of a search, its objective
    is_maximized: bool
    criterion: str  # what ranks the settings: a metric of the validation split, or without one the main metric
    evaluated: str  # of a search: the main metric of its evaluation, which may be that of the best setting alone


@dataclass(frozen=True)
class Answer:
    """The settings of one task (the same datasets), best first; the first four fields are those of its Rule."""

    metric: str
    is_maximized: bool
    criterion: str
    evaluated: str
    ranked: list[Setting]  # those that have the criterion and are no bounds
    bounds: list[Setting]  # lower and upper bounds of domain adaptation
    task: str  # the datasets; empty if the sweep has only one task

    @property
    def slug(self) -> str:
        """Return the stem of the figure's file; the name of a dataset may be a path."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", f"answer_{self.task}" if self.task else "answer")[:200]

    @property
    def sentences(self) -> list[str]:
        """Return what can truly be said about the best setting, shortest form."""
        return _describe(self)

    def compare(self, first: Setting, second: Setting, metric: str) -> Comparison:
        """Compare two settings by a metric in which the direction is that of the main one."""
        return compare_seeds(first.values(metric), second.values(metric), self.is_maximized)

    def rank(self, metric: str, settings: Sequence[Setting] | None = None) -> list[Setting]:
        """Return the ranked settings, or others, best first by another metric."""
        return rank_settings(self.ranked if settings is None else settings, metric, self.is_maximized)


def answer_sweep(sweep: Sweep) -> list[Answer]:
    """Return an answer for each task of a sweep whose finished settings have a metric to rank them by."""
    tasks: dict[str, list[Setting]] = {}
    for setting in sweep.settings:
        tasks.setdefault(_name_task(setting), []).append(setting)
    answers = []
    for task, settings in tasks.items():
        bounds = [setting for setting in settings if setting.role]
        others = [setting for setting in settings if setting not in bounds]
        bounds, others = (bounds, others) if others else ([], settings)
        if rule := choose_rule(sweep, others):
            ranked = rank_settings([s for s in others if s.values(rule.metric)], rule.criterion, rule.is_maximized)
            answers.append(Answer(*rule, ranked, bounds, task if len(tasks) > 1 else ""))
    return answers


def choose_rule(sweep: Sweep, settings: Sequence[Setting]) -> Rule | None:
    """Return by what to compare settings; None if no finished one has a number to compare."""
    choice = choose_metric(settings, sweep.metrics)
    if objective := next((name for s in settings for t in s.trials for name in t.objective if s.values(name)), ""):
        return Rule(objective, bool(sweep.is_maximized(objective)), objective, choice[1] if choice else "")
    if not choice:
        return None
    name, metric = choice
    criteria = [f"validation/{name}", f"validation/{name}/source"]
    measured = [setting for setting in settings if setting.values(metric)]
    criterion = next((c for c in criteria if all(setting.values(c) for setting in measured)), metric)
    return Rule(metric, metrics.declares(name, "higher_is_better"), criterion, "")


def order_settings(sweep: Sweep, answers: Sequence[Answer]) -> list[Setting]:
    """Return all settings: those of each answer, with its bounds, by its main metric; then the others."""
    measured = [setting for a in answers for setting in rank_settings([*a.ranked, *a.bounds], a.metric, a.is_maximized)]
    labels = {id(setting) for setting in measured}
    return [*measured, *(setting for setting in sweep.settings if id(setting) not in labels)]


def choose_metric(settings: Sequence[Setting], names: Sequence[str]) -> tuple[str, str] | None:
    """Return the first entry of `eval.metrics` that gives a number that can be compared, and that number's name."""
    for name in settings[0].trials[0].config.get("eval.metrics") or []:
        forms = [f"{name}/target", f"validation/{name}/target", name, f"validation/{name}"]
        forms += [n for n in names if n.startswith(f"{name}/")]
        for metric in forms:
            if name in metrics.names() and any(setting.values(metric) for setting in settings):
                return name, metric
    return None


def is_of_validation(metric: str) -> bool:
    """Return whether a metric may choose: of the validation split and not of labels of the target."""
    return metric.startswith("validation/") and not metric.endswith("accuracy/target")


def rank_settings(settings: Sequence[Setting], metric: str, is_maximized: bool) -> list[Setting]:
    """Return the settings that have a metric, best first; a missing seed neither favours nor harms a setting."""
    measured = [setting for setting in settings if setting.values(metric)]
    means = adjust_means([setting.values(metric) for setting in measured])
    order = np.argsort([-mean if is_maximized else mean for mean in means], kind="stable")
    return [measured[i] for i in order]


def adjust_means(table: Sequence[Values]) -> list[float]:
    """Return the mean of each setting as if it had all seeds: least squares of the sum of a setting and a seed.

    Where all settings have the same seeds, these are the plain means.
    """
    seeds = sorted({seed for values in table for seed in values})
    is_complete = all(len(values) == len(seeds) for values in table)
    means = [float(np.mean(list(values.values()))) for values in table]
    if is_complete:
        return means
    by_seed = {seed: [(i, values[seed]) for i, values in enumerate(table) if seed in values] for seed in seeds}
    for _ in range(100):
        offsets = {seed: float(np.mean([value - means[i] for i, value in rows])) for seed, rows in by_seed.items()}
        level = float(np.mean(list(offsets.values())))  # so that the offsets add up to zero
        offsets = {seed: offset - level for seed, offset in offsets.items()}
        means = [float(np.mean([value - offsets[seed] for seed, value in values.items()])) for values in table]
    return means


def compare_seeds(first: Values, second: Values, is_maximized: bool) -> Comparison:
    """Compare two settings: paired over the seeds that they share, or by Welch's interval if fewer than two are."""
    sign = 1.0 if is_maximized else -1.0
    shared = sorted(first.keys() & second.keys())
    differences = [sign * (first[seed] - second[seed]) for seed in shared]
    if len(shared) > 1:
        return Comparison(float(np.mean(differences)), student_interval(differences), len(shared))
    if shared and min(len(first), len(second)) == 1:
        return Comparison(differences[0], None, 1)
    a, b = ([sign * value for value in values.values()] for values in (first, second))
    interval = welch_interval(a, b) if min(len(a), len(b)) > 1 else None
    return Comparison(float(np.mean(a) - np.mean(b)), interval, 0)


def _name_task(setting: Setting) -> str:
    config = setting.trials[0].config
    parts = [format_exactly(config, f"data.{domain}") for domain in DOMAINS if config.get(f"data.{domain}")]
    contents = [format_exactly(config, f"data.{d}.content") for d in DOMAINS if f"data.{d}.content" in config]
    return " → ".join(parts) + (f" ({', '.join(contents)})" if contents else "")


def _describe(answer: Answer) -> list[str]:
    if not answer.ranked:
        return []
    best, metric = answer.ranked[0], answer.metric
    if len(answer.ranked) == 1:
        sentences = [f"{best.label}: {metric} {_describe_value(best, metric)}."]
    elif answer.criterion == metric:
        value = _describe_value(best, metric)
        sentences = [f"Best by {metric}{_warn(metric)}: {best.label}, {value}.", _lead(answer, metric)]
    else:
        value = _describe_value(best, metric)
        sentences = [f"Best by {answer.criterion}: {best.label}; its {metric}: {value}."]
        sentences.append(_lead(answer, answer.criterion))
    if answer.evaluated and best.values(answer.evaluated):
        sentences.append(f"Its {answer.evaluated}: {_describe_value(best, answer.evaluated)}.")
    sentences += _describe_bounds(answer, metric)
    if answer.criterion != metric and len(answer.ranked) > 1:
        lead = _lead(answer, metric)
        sentences.append(f"By {metric} itself{_warn(metric)}: {answer.rank(metric)[0].label}. {lead}")
    return sentences


def _describe_bounds(answer: Answer, metric: str) -> list[str]:
    """Return the best setting's lead over the lower bound, which says whether adaptation helps, and the upper bound."""
    sentences = []
    for role in ("lower_bound", "upper_bound"):
        for bound in answer.rank(metric, [s for s in answer.bounds if s.role == role])[:1]:
            sentence = f"{role.replace('_', ' ').capitalize()} {bound.label}: {_describe_value(bound, metric)}"
            if role == "lower_bound" and answer.ranked[0].values(metric):
                sentence += f"; lead over it: {answer.compare(answer.ranked[0], bound, metric).words}"
            sentences.append(f"{sentence}.")
    return sentences


def _warn(metric: str) -> str:
    """Return what is wrong with choosing by a metric; empty if nothing is."""
    if is_of_validation(metric):
        return ""
    labels = "labels of the target" if metric.endswith("accuracy/target") else ""
    test = "" if metric.startswith("validation/") else "the test split"
    return f" (a choice by {' and '.join(filter(None, (test, labels)))})"


def _describe_value(setting: Setting, metric: str) -> str:
    summary = setting.summarize(metric)
    is_of_seeds = summary is not None and summary.n == setting.n > 1
    return setting.describe(metric) + (f" (n = {setting.n})" if is_of_seeds else "")


def _lead(answer: Answer, metric: str) -> str:
    """Return how far the first setting is ahead of the next one, and how many others the noise hides."""
    best, second, *rest = answer.rank(metric)
    leads = [answer.compare(best, setting, metric) for setting in rest]
    hidden = sum(lead.interval is not None and not lead.is_clear for lead in leads)
    others = f"; so {'are' if hidden > 1 else 'is'} {hidden} more" if hidden else ""
    return f"Lead over {second.label}: {answer.compare(best, second, metric).words}{others}."


def format_answer(sweep: Sweep, answers: Sequence[Answer]) -> str:
    """Return the answer for a terminal: at most ten lines of 80 columns."""
    question, _ = split_question(sweep.abstract)
    counts = ", ".join(f"{n} {state}" for state, n in sweep.counts.items())
    lines = textwrap.wrap(f"{sweep.name}: {question}" if question else sweep.name, TERMINAL)[:2]
    lines.append(f"{len(sweep.trials)} trials: {counts}")
    for answer in answers:
        title = [f"{answer.task}:"] if answer.task else []
        for text in [*title, *answer.sentences]:
            lines += textwrap.wrap(text, TERMINAL, subsequent_indent="  ")
    if not any(answer.sentences for answer in answers):
        lines.append("No finished setting has a metric to compare.")
    return "\n".join([*lines[: LINES - 1], "… more on the page"] if len(lines) > LINES else lines)

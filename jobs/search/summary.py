"""What a search has come to: its trials by state, the best setting so far, and that setting as a sweep file."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.search import SEARCH
from trainer.config.document import nest
from trainer.config.schema import Config, dump_yaml
from trainer.config.space import SEED
from trainer.errors import ConfigError
from trainer.runs.atomic import write_text
from trainer.runs.objective import write_importance

if TYPE_CHECKING:
    from jobs.search.study import Study

LEAST_RANKED = 10  # settings, of which Optuna compares the best tenth with all


def follow(sweep: Path) -> Callable[[], list[str]]:
    """Return a function that returns the lines of a search as it is now: none for other sweeps.

    Optuna is imported only for a search.
    """
    if not (sweep / SEARCH).exists():
        return list
    try:
        study = open_study(sweep)
    except ConfigError as error:
        message = f"search: {error}"
        return lambda: [message]
    return lambda: summarize(study)


def open_study(sweep: Path) -> "Study":
    """Return the study of a sweep's directory, to be read; ConfigError if there is none, or no Optuna."""
    try:
        from jobs.search.study import Study, read_search
    except ImportError as error:
        raise ConfigError(f"{error}; Optuna and its samplers: pip install -e '.[search]'") from None
    if (search := read_search(sweep)) is None:
        raise ConfigError(f"{sweep}: has no search; give the directory of a sweep with search:")
    return Study(sweep, search)


def summarize(study: "Study") -> list[str]:
    """Return lines with the settings in each state and the cost, what matters, and the best setting so far."""
    counts = Counter(trial.state.name.lower() for trial in study.trials())
    ended = counts["complete"] + counts["pruned"]
    states = [f"{number} {state}" for state, number in counts.items()]
    share = f" ({counts['pruned'] / ended:.0%} of those that ended were pruned)" if counts["pruned"] else ""
    spent = f"{study.device_hours():.3g} device-hours"
    lines = [f"search: {study.count_asked()} settings: {', '.join(states)}{share}; {spent}"]
    if importance := rank_parameters(study):
        shares = ", ".join(f"{name} {share:.2f}" for name, share in importance.items())
        lines.append(f"importance at step {study.rungs[0]}: {shares}")
    if (best := study.best()) and best.value is not None:
        dimensions = study.search.dimensions(best.params)
        values = [f"{name}={dimensions[name].decode(value)}" for name, value in best.params.items()]
        runs = ", ".join(run.name for run in study.runs(best))
        lines.append(f"best {study.search.options.metric} {best.value:.6g}: {', '.join(values)} ({runs})")
    return lines


def rank_parameters(study: "Study") -> dict[str, float]:
    """Return the share of each parameter in what sets the best tenth of the settings apart (PED-ANOVA), largest first.

    Values are those at the first rung, where pruned settings were measured, too. {} of fewer settings than
    LEAST_RANKED, or if all were equally good.
    """
    import optuna

    measured = [t for t in study.trials() if study.rungs[0] in t.intermediate_values]
    values = [trial.intermediate_values[study.rungs[0]] for trial in measured]
    if len(measured) < LEAST_RANKED or len({*values}) < 2:
        return {}
    ranked = optuna.create_study(direction=study.search.options.direction)
    for trial, value in zip(measured, values, strict=True):
        ranked.add_trial(optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=value))
    shares = optuna.importance.get_param_importances(ranked)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def record_importance(study: "Study") -> None:
    """Keep the importance of the parameters in the sweep's directory, where the report finds it."""
    if importance := rank_parameters(study):
        write_importance(study.sweep, study.rungs[0], importance)


def write_best(sweep: Path, file: Path) -> None:
    """Write the best setting of a search as a sweep file; ConfigError if there is none, or if the file exists."""
    study = open_study(sweep)
    best = study.best()
    if best is None:
        raise ConfigError(f"{sweep}: no setting of its search is complete; wait for the first one")
    if file.exists():
        raise ConfigError(f"command line: --best {file}: exists; remove it, or give another name")
    trials = study.search.trials(best.params)
    settings = {key: setting for key, setting in trials[0].settings.items() if key not in ("name", SEED)}
    document, seeds = nest(settings), [trial.config.train.seed for trial in trials]
    if len(seeds) > 1:
        document["grid"] = {SEED: seeds}
    else:
        document.setdefault("train", {})["seed"] = seeds[0]
    keys = [key for key in (*Config.model_fields, "grid") if key in document]
    head = (
        f"# How good is the setting that the search {study.search.template().name} chose?\n#\n"
        f"# {study.search.options.metric} {best.value:.6g}, best of {study.count_asked()} settings, none of which saw "
        f"the test split\n# Command:  python jobs/submit.py {file}\n"
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, head + dump_yaml({key: document[key] for key in keys}))
    except OSError as error:
        raise ConfigError(f"command line: --best {file}: cannot be written: {error.strerror}") from None

"""The block `search:` of a sweep file: what a search varies, how, and by which metric; without torch or Optuna."""

from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from trainer.config.document import (
    AXES,
    Document,
    Setting,
    Settings,
    find_place,
    flatten,
    merge,
    parse_overrides,
    read_settings,
)
from trainer.config.schema import Config
from trainer.config.search_options import SearchOptions, read_options
from trainer.config.space import ENTRY, SEED, Branch, Dimension, read_branches, read_space, select_known
from trainer.config.sweep import Trial, expand, load_trials
from trainer.errors import ConfigError


@dataclass(frozen=True)
class Search:
    """An adaptive search: settings that all trials share, the space of those that vary, and how they are chosen."""

    options: SearchOptions
    space: dict[str, Dimension]  # that all trials share
    settings: Settings  # of the file, over the preset's
    overrides: Settings  # of the command line
    file: str
    branches: dict[str, Branch] = field(default_factory=dict)  # by name: the entries of `trials:`, if there are any
    metric_place: str = field(default="", compare=False)  # where search.metric was written

    def dimensions(self, parameters: Document) -> dict[str, Dimension]:
        """Return the parameters of a setting; of a search with `trials:` only ENTRY before that is one of them."""
        if not self.branches:
            return self.space
        entry = {ENTRY: Dimension(ENTRY, "choice", [*self.branches], self.file)}
        return entry | self.branches[parameters[ENTRY]].space if ENTRY in parameters else entry

    def trials(self, parameters: Document) -> list[Trial]:
        """Return the trials of a setting, one for each seed; ConfigError if a method refuses it."""
        dimensions = {name: d for name, d in self.dimensions(parameters).items() if name != ENTRY}
        values = {d.key: Setting(d.decode(parameters[name]), d.place) for name, d in dimensions.items()}
        settings, overrides = self.settings, self.overrides
        if self.branches:
            branch = self.branches[parameters[ENTRY]]
            settings = {"trials": Setting([branch.settings], self.file)} | select_known(settings, branch.method)
            overrides = select_known(overrides, branch.method)
        return expand(settings, overrides | values, self.file)

    def templates(self) -> list[Config]:
        """Return the configuration of the fixed settings, with values of what is searched; of each entry's."""
        return [self.trials(corner)[0].config for corner in self.first_corners()]

    def template(self) -> Config:
        """Return the first of the templates, whose steps and resources are those of all."""
        return self.trials(self.first_corners()[0])[0].config

    def first_corners(self) -> list[Document]:
        """Return the parameters of one corner of the space; of each entry's, if there are `trials:`."""
        entries: list[Document] = [{ENTRY: name} for name in self.branches] or [{}]
        return [{name: d.encode(d.corners()[0]) for name, d in self.dimensions(e).items()} | e for e in entries]

    def starting_points(self) -> list[Document]:
        """Return the parameters of the settings to try first, as far as they are set; ConfigError."""
        return [self.read_point(number, flatten(point)) for number, point in enumerate(self.options.enqueue)]

    def read_point(self, number: int, point: Document) -> Document:
        """Return the parameters of a setting to try first: of the first entry that has its method and its keys."""
        where = f"{self.file}: search.enqueue.{number}"
        method = point.pop("method", None) if self.branches else None
        names = [name for name, branch in self.branches.items() if method in (None, branch.method)]
        if self.branches and not names:
            raise ConfigError(f"{where}: method: {method!r}: no entry of trials: has it")
        entries: list[Document] = [{ENTRY: name} for name in names] or [{}]
        spaces = [{d.key: (name, d) for name, d in self.dimensions(e).items() if name != ENTRY} for e in entries]
        chosen = next((i for i, space in enumerate(spaces) if point.keys() <= space.keys()), 0)
        parameters = dict(entries[chosen])
        for key, value in point.items():
            if key not in spaces[chosen]:
                valid = ", ".join(spaces[chosen])
                raise ConfigError(f"{where}: {key}: {value!r}: is not in search.space, which has {valid}")
            name, dimension = spaces[chosen][key]
            try:
                parameters[name] = dimension.encode(value)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{where}: {key}: {value!r}: {error}") from None
        return parameters

    def rungs(self) -> list[int]:
        """Return the steps at which a trial is measured; the last one is train.steps."""
        steps, pruner, rungs = self.template().train.steps, self.options.pruner, []
        step = pruner.first if pruner.name != "none" and pruner.first else steps
        while step < steps:
            rungs.append(step)
            step *= pruner.factor
        return [*rungs, steps]

    def to_document(self) -> Document:
        """Return all of this as JSON, for jobs that do not see the sweep file."""
        return {
            "options": self.options.model_dump(),
            "space": {key: [d.distribution, d.bounds, d.place] for key, d in self.space.items()},
            "settings": {key: [s.value, s.place] for key, s in self.settings.items()},
            "overrides": {key: [s.value, s.place] for key, s in self.overrides.items()},
            "file": self.file,
            "branches": {
                name: {
                    "method": branch.method,
                    "settings": {key: [s.value, s.place] for key, s in branch.settings.items()},
                    "space": {key: [d.key, d.distribution, d.bounds, d.place] for key, d in branch.space.items()},
                }
                for name, branch in self.branches.items()
            },
        }

    @staticmethod
    def from_document(document: Document) -> "Search":
        """Return the search that `to_document` returned."""
        settings, overrides = (
            {key: Setting(*s) for key, s in document[layer].items()} for layer in ("settings", "overrides")
        )
        space = {key: Dimension(key, *d) for key, d in document["space"].items()}
        branches = {
            name: Branch(
                branch["method"],
                {key: Setting(*s) for key, s in branch["settings"].items()},
                {key: Dimension(*d) for key, d in branch["space"].items()},
            )
            for name, branch in document.get("branches", {}).items()
        }
        options = SearchOptions(**document["options"])
        return Search(options, space, settings, overrides, document["file"], branches)


def load_search(path: Path, words: list[str], defaults: Settings | None = None) -> Search | None:
    """Return the search of a sweep file over `defaults` and under `key=value` words; None without one; ConfigError."""
    written = {"name": Setting(path.stem, str(path))} | read_settings(path)
    layers = (merge(defaults or {}, written), parse_overrides(words))
    block = merge(*({k: s for k, s in layer.items() if k.split(".")[0] == "search"} for layer in layers))
    if not block:
        return None
    settings, overrides = ({k: s for k, s in layer.items() if k.split(".")[0] != "search"} for layer in layers)
    if entries := settings.pop("trials", None):
        load_trials(path, words, defaults)  # checks them
    check_axes(settings, overrides)
    shared = {key: d for key, d in read_space(block, "search.space").items() if key not in overrides}
    branches = read_branches(entries, shared, settings, overrides, str(path)) if entries else {}
    check_keys(shared, branches, block, str(path))
    metric_place = find_place(block, "search.metric", str(path))
    search = Search(read_options(block, str(path)), shared, settings, overrides, str(path), branches, metric_place)
    count, budget = len(search.starting_points()), search.options.most()
    if count > budget:
        place = find_place(block, "search.enqueue", str(path))
        raise ConfigError(f"{place}: search.enqueue: {count} settings are more than search.trials: {budget}")
    check_space(search)
    first, steps = search.options.pruner.first, search.template().train.steps
    if search.options.pruner.name != "none" and first is not None and first >= steps:
        raise ConfigError(
            f"{find_place(block, 'search.pruner.first', str(path))}: search.pruner.first: {first}: the first rung must "
            f"be before the last step of a trial, train.steps: {steps}; choose a smaller one"
        )
    return search


def check_axes(settings: Settings, overrides: Settings) -> None:
    """Refuse other axes than seeds beside a search; ConfigError."""
    for key, setting in settings.items():
        if key.split(".")[0] in AXES and key != f"grid.{SEED}":
            raise ConfigError(
                f"{setting.place}: {key}: beside search:, only seeds are crossed, grid: {{{SEED}: [0, 1, 2]}}; "
                "put other keys into search.space, as a choice, or methods into trials:"
            )
    for key, setting in overrides.items():
        if isinstance(setting.value, list) and key == "method":
            raise ConfigError(f"{setting.place}: {key}: {setting.value}: list methods in trials: of the file")


def check_keys(shared: dict[str, Dimension], branches: dict[str, Branch], block: Settings, file: str) -> None:
    """Refuse an empty space, and keys that no method has; ConfigError."""
    for key, dimension in shared.items():
        if branches and not any(select_known({key: dimension}, branch.method) for branch in branches.values()):
            raise ConfigError(f"{dimension.place}: search.space.{key}: no method of trials: has it")
    if not shared and not any(branch.space for branch in branches.values()):
        if any(key.startswith("search.space.") for key in block):
            raise ConfigError("command line: no key of search.space is left to search; leave one out")
        place = find_place(block, "search.space", file)
        raise ConfigError(f"{place}: search.space: is empty; add a key: model.lr: {{loguniform: [1e-5, 1e-2]}}")


def check_space(search: Search) -> None:
    """Resolve corners of the space and the settings to try first; ConfigError if a value is refused."""
    list_checked(search)
    templates = search.templates()
    for key in ("train.steps", "resources"):
        values = [attrgetter(key)(config) for config in templates]
        if any(value != values[0] for value in values):
            raise ConfigError(f"{search.file}: trials: {key} differs, but a search needs one; set it once, at the top")
    for corner in search.first_corners():
        trials = search.trials(corner)
        settings = [without_seed(trial.config) for trial in trials]
        if different := [t.label for t, setting in zip(trials, settings, strict=True) if setting != settings[0]]:
            raise ConfigError(
                f"{search.file}: beside search:, {trials[0].label} and {different[0]} differ in more than {SEED}; "
                "give one value, or put the key into search.space"
            )


def without_seed(config: Config) -> Document:
    """Return a configuration without its seed."""
    return {key: value for key, value in flatten(config.model_dump()).items() if key != SEED}


def list_checked(search: Search) -> list[Config]:
    """Return what is checked before a search begins: corners that differ from the first in one key, starting points."""
    points: list[Document] = []
    for first in search.first_corners():
        dimensions = search.dimensions(first).items()
        corners = [{name: d.encode(v)} for name, d in dimensions if name != ENTRY for v in d.corners()[1:]]
        starts = [point for point in search.starting_points() if point.get(ENTRY) == first.get(ENTRY)]
        points += [first, *(first | changes for changes in (*corners, *starts))]
    return [trial.config for point in points for trial in search.trials(point)]

"""TensorBoard: one run per trial, with the curves of training, the metrics of evaluation and its hyperparameters."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter

from eval.events import write_events
from trainer.runs.directory import RunDirectory

RECORD: dict[str, Any] = {
    "step": 20,
    "metrics": {"accuracy/target": 0.75, "best/accuracy/target": 0.5},
    "history": [{"step": 10, "metrics": {"accuracy/target": 0.5}}, {"step": 20, "metrics": {"accuracy/target": 0.75}}],
}


def test_one_run_per_trial_holds_curves_metrics_and_hyperparameters(tmp_path: Path) -> None:
    for gamma in (1, 5):
        run = RunDirectory(tmp_path / "dann" / f"dann,gamma={gamma},seed=0-0000000{gamma}")
        (run.path / "eval").mkdir(parents=True)
        config = {"method": "dann", "model": {"gamma": gamma, "lr": 0.1}, "train": {"seed": 0, "steps": 20}}
        run.config_file.write_text(yaml.safe_dump({**config, "name": "dann", "eval": {"seed": 3}}))
        (run.tensorboard / "eval").mkdir(parents=True)  # where the evaluation once had a run of its own
        (run.tensorboard / "eval" / "events.out.tfevents.1.host").touch()
        training = SummaryWriter(str(run.tensorboard))
        training.add_scalar("joint/label", 0.25, 10)
        training.close()
        Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(run.path / "eval" / "tsne.png")
        for _ in range(2):  # the second evaluation replaces the first
            write_events(RECORD, run.path / "eval", run)

    board = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "dann")).Reload()
    assert sorted(board.Runs()) == [f"dann,gamma={g},seed=0-0000000{g}/tensorboard" for g in (1, 5)]
    for gamma, name in zip((1, 5), sorted(board.Runs()), strict=True):
        tags = board.GetAccumulator(name).Tags()
        assert sorted(tags["scalars"]) == ["eval/accuracy/target", "eval/best/accuracy/target", "joint/label"]
        points = [(event.step, event.value) for event in board.Scalars(name, "eval/accuracy/target")]
        assert points == [(10, 0.5), (20, 0.75)]
        assert [event.step for event in board.GetAccumulator(name).Images("tsne")] == [20]
        content = board.SummaryMetadata(name, "_hparams_/session_start_info").plugin_data.content
        values = HParamsPluginData.FromString(content).session_start_info.hparams
        assert {key: value.WhichOneof("kind") for key, value in values.items()} == {
            "method": "string_value",
            "model.gamma": "number_value",
            "train.seed": "number_value",
        }
        assert values["model.gamma"].number_value == gamma

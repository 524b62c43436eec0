"""Train the registration on procedural shapes and real terrain: ``python examples/registration/train.py``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from data import training_set, validation_set
from model import RegistrationModel, apply_motion

from vision3d_engine import Config, IterBasedTrainer, build_dataloader, build_optimizer, build_scheduler, load_config
from vision3d_engine.metrics.registration import rotation_error_deg

CONFIG = Path(__file__).parent / "config.yaml"


class RegistrationTrainer(IterBasedTrainer):
    """Learns to bring the source of a pair onto its target."""

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        data, seed = cfg.data, cfg.exp.seed
        train_set = training_set(data.num_train, data.num_points, data.max_angle_deg, seed)
        val_set = validation_set(data.num_val, data.num_points, data.max_angle_deg, seed + 1)
        train_loader = build_dataloader(train_set, data.batch_size, num_workers=0, shuffle=True)
        self.register_loader(train_loader, build_dataloader(val_set, data.batch_size, num_workers=0))
        model = self.register_model(RegistrationModel(rounds=cfg.model.train_rounds))
        optimizer = build_optimizer(model, cfg)
        self.register_optimizer(optimizer)
        self.register_scheduler(build_scheduler(optimizer, cfg))
        self.save_best_model_on_metric("rotation_deg", largest=False)
        self.rounds = cfg.model

    def train_step(self, epoch: int, iteration: int, data_dict: Any) -> tuple[Any, dict[str, Any]]:
        """Return the mean distance, over all rounds, between where points come to lie and where they belong."""
        estimates = self.model(data_dict["source"], data_dict["target"], self.rounds.train_rounds)
        truth = apply_motion(data_dict["source"], data_dict["rotation"], data_dict["translation"])
        distances = [(apply_motion(data_dict["source"], *motion) - truth).norm(dim=-1).mean() for motion in estimates]
        return {"motion": estimates[-1]}, {"loss": torch.stack(distances).sum(), "distance": distances[-1].detach()}

    def val_step(self, epoch: int, iteration: int, data_dict: Any) -> tuple[Any, dict[str, Any]]:
        """Return the mean angle between the estimated and the true rotation."""
        rotation, translation = self.model(data_dict["source"], data_dict["target"], self.rounds.test_rounds)[-1]
        error = rotation_error_deg(rotation, data_dict["rotation"])
        return {"motion": (rotation, translation)}, {"rotation_deg": error.mean()}


def main(argv: Sequence[str]) -> None:
    """Train with the settings of config.yaml; any can be overridden: ``--trainer.max_epoch 8``."""
    torch.set_num_threads(1)
    RegistrationTrainer(load_config(CONFIG, argv)).run()


if __name__ == "__main__":
    main(sys.argv[1:])

"""What the old scripts share, as their projects have it: a config, a data set and a model."""

import os.path as osp

import numpy as np
import torch
from easydict import EasyDict as edict
from torch.utils.data import Dataset

from vision3d_engine.utils.io import ensure_dir


def make_cfg(working_dir):
    _C = edict()
    _C.exp = edict()
    _C.exp.name = osp.basename(working_dir)
    _C.exp.working_dir = working_dir
    _C.exp.output_dir = osp.join(working_dir, "output")
    _C.exp.checkpoint_dir = osp.join(_C.exp.output_dir, "checkpoints")
    _C.exp.log_dir = osp.join(_C.exp.output_dir, "logs")
    _C.exp.event_dir = osp.join(_C.exp.output_dir, "events")
    _C.exp.seed = 7351
    for folder in (_C.exp.output_dir, _C.exp.checkpoint_dir, _C.exp.log_dir, _C.exp.event_dir):
        ensure_dir(folder)

    _C.train = edict(batch_size=4, num_workers=0)
    _C.trainer = edict(max_epoch=3, num_iters_per_epoch=6, grad_acc_steps=2)
    _C.optimizer = edict(type="Adam", lr=1e-2, weight_decay=1e-6)
    _C.scheduler = edict(type="Cosine", total_steps=18, warmup_steps=4, eta_init=0.1, eta_min=0.1)
    _C.loss = edict(weight=1.0)
    return _C


class PointSet(Dataset):
    """Two kinds of clouds of varying size: flat ones and tall ones."""

    def __init__(self, count=24):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        label = index % 2
        points = rng.normal(size=(20 + index % 5, 3)).astype(np.float32)
        points[:, 2] *= 0.1 + label
        return {"points": points, "label": label}


def collate(samples):
    """Pack clouds of varying size into one tensor, as the vision3d family does."""
    return {
        "points": torch.from_numpy(np.concatenate([sample["points"] for sample in samples])),
        "lengths": torch.tensor([len(sample["points"]) for sample in samples]),
        "label": torch.tensor([sample["label"] for sample in samples]),
        "batch_size": len(samples),
    }


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(3, 16)
        self.head = torch.nn.Linear(16, 2)

    def forward(self, data_dict):
        feats = torch.relu(self.encoder(data_dict["points"]) ** 2)
        chunks = torch.split(feats, data_dict["lengths"].tolist())
        return {"logits": self.head(torch.stack([chunk.mean(0) for chunk in chunks]))}

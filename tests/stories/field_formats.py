"""The batches of other codes, each collated as there, with a tiny network that trains on them.

A sample has the same points in each format: a cloud, or a pair of clouds, whose size differs from all others.
"""

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, smooth_l1_loss

from vision3d_engine import BatchTester, EpochBasedTrainer, SingleTester, build_dataloader
from vision3d_engine.utils.tensor import array_to_tensor

SIZES = [(7, 9), (5, 6), (12, 8), (6, 11), (10, 5), (8, 13)]


def cloud(size, seed):
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(seed))


def one_of(names):
    """Return the name of a case, which is in a list in a batch of one."""
    return str(names if isinstance(names, str) else names[0])


def halves(points):
    """Classes that a network can learn."""
    return (points[:, 0] > 0).long()


# ------------------------------------------------------------------------------------------- Pointcept


class Pointcept:
    """Dicts of packed arrays with `offset`."""

    network = staticmethod(lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)))

    @staticmethod
    def samples():
        found = []
        for number, (size, _) in enumerate(SIZES):
            coord = cloud(size, number)
            grid, feat = (coord * 10).floor().int(), torch.cat([coord, coord.square()], 1)
            sample = {"coord": coord, "grid_coord": grid, "segment": halves(coord), "feat": feat}
            found.append(sample | {"name": f"scene {number}", "offset": torch.tensor([size])})
        return found

    @staticmethod
    def collate(batch):
        first = batch[0]
        if isinstance(first, torch.Tensor):
            return torch.cat(batch)
        if isinstance(first, Mapping):
            joined = {key: Pointcept.collate([sample[key] for sample in batch]) for key in first}
            return {key: part.cumsum(0) if "offset" in key else part for key, part in joined.items()}
        return list(batch)

    @staticmethod
    def forward(network, data):
        return {"seg_logits": network(data["feat"])}

    @staticmethod
    def loss(data, output):
        return cross_entropy(output["seg_logits"], data["segment"])

    @staticmethod
    def as_sample(case):
        return case | {"name": one_of(case["name"])}


# ------------------------------------------------------------------------------------------- OpenPCDet


class OpenPCDet:
    """Points and voxels with the case in a first column, padded boxes; `lengths` by name."""

    network = staticmethod(lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 7)))

    @staticmethod
    def samples():
        found = []
        for number, (size, num_voxels) in enumerate(SIZES):
            points = torch.cat([cloud(size, number), torch.ones(size, 1)], 1).numpy()
            voxels = cloud(num_voxels * 5, number).view(num_voxels, 5, 3).numpy()
            boxes = np.arange(8 * (1 + number % 3), dtype=np.float32).reshape(-1, 8) + 1 + number
            sample = {"points": points, "voxels": voxels, "voxel_num_points": np.full(num_voxels, 5)}
            coords = (cloud(num_voxels, number) * 10).int().numpy()
            found.append(sample | {"voxel_coords": coords, "gt_boxes": boxes, "frame_id": f"{number:06d}"})
        return found

    @staticmethod
    def collate(samples):
        lists = {key: [sample[key] for sample in samples] for key in samples[0]}
        batch = {key: np.stack(lists[key]) for key in ("frame_id",)}
        batch |= {key: np.concatenate(lists[key]) for key in ("voxels", "voxel_num_points")}
        for key in ("points", "voxel_coords"):
            columns = [np.pad(each, ((0, 0), (1, 0)), constant_values=i) for i, each in enumerate(lists[key])]
            batch[key] = np.concatenate(columns)
        batch["gt_boxes"] = np.zeros((len(samples), max(map(len, lists["gt_boxes"])), 8), dtype=np.float32)
        for number, boxes in enumerate(lists["gt_boxes"]):
            batch["gt_boxes"][number, : len(boxes)] = boxes
        lengths = {key: list(map(len, lists[key])) for key in ("points", *(key for key in lists if "voxel" in key))}
        lengths["point_preds"] = lengths["points"]
        return array_to_tensor(batch | {"batch_size": len(samples), "lengths": lengths})

    @staticmethod
    def forward(network, data):
        case = data["points"][:, 0].long()
        found = network(data["points"][:, 1:])
        sums = found.new_zeros(data["batch_size"], 7).index_add(0, case, found)
        return {"point_preds": found, "box_preds": sums / case.bincount(minlength=data["batch_size"])[:, None]}

    @staticmethod
    def loss(data, output):
        boxes = data["gt_boxes"].view(-1, *data["gt_boxes"].shape[-2:])  # of a case or a batch
        is_box = (boxes[..., 7] > 0).float()
        centres = (boxes[..., :7] * is_box[..., None]).sum(1) / is_box.sum(1, keepdim=True)
        return smooth_l1_loss(output["box_preds"].view(-1, 7), centres)

    @staticmethod
    def as_sample(case):
        found = {key: case[key].numpy() for key in ("voxels", "voxel_num_points")}
        found |= {key: case[key].numpy()[:, 1:] for key in ("points", "voxel_coords")}
        boxes = case["gt_boxes"].view(-1, 8).numpy()
        return found | {"gt_boxes": boxes[boxes[:, 7] > 0], "frame_id": one_of(case["frame_id"])}


# ------------------------------------------------------------------------------------------- KPConv, GeoTransformer


def nearest(queries, supports, query_lengths, support_lengths):
    """Return the 3 nearest supports of each query within its own cloud, numbered over the stack."""
    start, found = 0, []
    for own, others in zip(queries.split(query_lengths), supports.split(support_lengths), strict=True):
        found.append(torch.cdist(own, others).topk(min(3, len(others)), largest=False).indices + start)
        start += len(others)
    return torch.cat(found)


class KPConv(nn.Module):
    """Means over neighbours, down to a coarse level and up again."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse, self.head = nn.Linear(3, 16), nn.Linear(16, 16), nn.Linear(32, 2)

    def forward(self, data):
        fine = self.fine(data["features"])[data["neighbors"][0]].mean(1).relu()
        coarse = self.coarse(fine[data["subsampling"][0]].mean(1))[data["neighbors"][1]].mean(1).relu()
        up = torch.cat([fine, coarse[data["upsampling"][0][:, 0]]], 1)
        return {"scores": self.head(up), "feats": [fine, coarse]}


class GeoTransformer:
    """References and sources stacked, in lists with an entry a level; the rest in lists, but bare for one sample."""

    network = KPConv

    @staticmethod
    def samples():
        pairs = [(cloud(ref, 2 * number), cloud(src, 2 * number + 1)) for number, (ref, src) in enumerate(SIZES)]
        return [
            {"ref_points": ref, "src_points": src, "transform": torch.eye(4) * (number + 1), "name": f"pair {number}"}
            for number, (ref, src) in enumerate(pairs)
        ]

    @staticmethod
    def collate(samples):
        batch = {key: [sample[key] for sample in samples] for key in samples[0]}
        clouds = batch.pop("ref_points") + batch.pop("src_points")
        if len(samples) == 1:
            batch = {key: value[0] for key, value in batch.items()}
        points = [torch.cat(clouds), torch.cat([each[::2] for each in clouds])]
        lengths = [torch.tensor([len(each) for each in clouds]), torch.tensor([len(each[::2]) for each in clouds])]
        (fine, coarse), (n, m) = points, [each.tolist() for each in lengths]
        batch |= {"features": points[0] * 2, "points": points, "lengths": lengths, "batch_size": len(samples)}
        batch["neighbors"] = [nearest(fine, fine, n, n), nearest(coarse, coarse, m, m)]
        return batch | {"subsampling": [nearest(coarse, fine, m, n)], "upsampling": [nearest(fine, coarse, n, m)]}

    @staticmethod
    def forward(network, data):
        return network(data)

    @staticmethod
    def loss(data, output):
        return cross_entropy(output["scores"], halves(data["points"][0]))

    @staticmethod
    def as_sample(case):
        assert [len(each) for each in case["neighbors"]] == [len(each) for each in case["points"]]
        assert torch.equal(case["features"], case["points"][0] * 2)
        clouds, coarse = (points.split(n.tolist()) for points, n in zip(case["points"], case["lengths"], strict=True))
        assert all(torch.equal(own, other[::2]) for own, other in zip(coarse, clouds, strict=True))
        return dict(zip(("ref_points", "src_points"), clouds, strict=True)) | {
            key: case[key] for key in ("transform", "name")
        }


# ------------------------------------------------------------------------------------------- torch_geometric


def torch_geometric():
    """Return the package, which scripts some classes while it is imported, with a warning each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_geometric.loader
    return torch_geometric


class PyG:
    """Graphs in a `Batch`, which lies in a dict."""

    network = staticmethod(lambda: nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2)))

    @staticmethod
    def samples():
        found, Data = [], torch_geometric().data.Data  # noqa: N806
        for number, (size, _) in enumerate(SIZES):
            pos = cloud(size, number)
            edges = torch.stack([torch.arange(size), torch.arange(size).roll(1)])
            found.append({"graph": Data(pos=pos, y=halves(pos), edge_index=edges), "name": f"graph {number}"})
        return found

    collate = staticmethod(lambda samples: torch_geometric().loader.dataloader.Collater(samples)(samples))

    @staticmethod
    def forward(network, data):
        graph = data["graph"]
        sender, receiver = graph.edge_index
        scores = network(graph.pos)
        return {"scores": scores + 0.1 * torch.zeros_like(scores).index_add(0, receiver, scores[sender])}

    @staticmethod
    def loss(data, output):
        return cross_entropy(output["scores"], data["graph"].y)

    @staticmethod
    def as_sample(case):
        graph = case["graph"]
        graph = graph.to_data_list()[0] if hasattr(graph, "to_data_list") else graph
        return {"graph": graph.to_dict(), "name": one_of(case["name"])}


FORMATS = {kind.__name__: kind for kind in (Pointcept, OpenPCDet, GeoTransformer, PyG)}


# ------------------------------------------------------------------------------------------- the engine


def loader(kind, batch_size, num_workers, **options):
    samples = kind.samples()
    return build_dataloader(samples, batch_size, num_workers=num_workers, collate_fn=kind.collate, **options)


def settings(folder, **trainer):
    return {"exp": {"output_dir": str(folder), "seed": 3}, "trainer": {"max_epoch": 2, **trainer}}


class Trainer(EpochBasedTrainer):
    def __init__(self, kind, folder, num_workers=0, **trainer):
        super().__init__(settings(folder, **trainer))
        self.kind, self.val_losses = kind, []
        train_loader = loader(kind, 2, num_workers, shuffle=True)
        self.register_loader(train_loader, loader(kind, 2, num_workers))
        torch.manual_seed(0)
        model = self.register_model(kind.network())
        self.register_optimizer(torch.optim.Adam(model.parameters(), lr=0.03))

    def train_step(self, epoch, iteration, data_dict):
        output_dict = self.kind.forward(self.model, data_dict)
        return output_dict, {"loss": self.kind.loss(data_dict, output_dict)}

    val_step = train_step

    def after_val_epoch(self, epoch, summary_dict):
        self.val_losses.append(summary_dict["loss"])


class _Steps:
    """Tests, and keeps the cases."""

    def __init__(self, kind, folder, batch_size, num_workers=0):
        super().__init__(settings(folder), "epoch-2.pth")
        self.kind, self.cases, self.losses = kind, [], []
        self.register_loader(loader(kind, batch_size, num_workers))
        self.register_model(kind.network())

    def test_step(self, iteration, data_dict):
        return self.kind.forward(self.model, data_dict)

    def eval_step(self, iteration, data_dict, output_dict):
        self.cases.append(data_dict)
        self.losses.append(float(self.kind.loss(data_dict, output_dict)))
        return {"loss": self.losses[-1]}


class Cases(_Steps, BatchTester):
    pass


class Singles(_Steps, SingleTester):
    pass

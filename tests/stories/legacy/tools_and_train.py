"""A script that uses the old tools by themselves, then trains two trainers in one process."""

import os
import os.path as osp

import numpy as np
import torch

from common import Net, PointSet, collate, make_cfg
from vision3d_engine import EpochBasedTrainer
from vision3d_engine.utils.checkpoint import CheckpointManager, load_state_dict
from vision3d_engine.utils.context_manager import ContextManager, get_context_manager
from vision3d_engine.utils.dataloader import build_dataloader, reset_seed_worker_init_fn
from vision3d_engine.utils.distributed import get_world_size, is_distributed, master_only
from vision3d_engine.utils.engine import setup_engine
from vision3d_engine.utils.io import readlines, write_correspondences, writelines
from vision3d_engine.utils.logger import get_logger
from vision3d_engine.utils.misc import deprecated, get_log_string, load_ext
from vision3d_engine.utils.parser import add_argument, parse_args
from vision3d_engine.utils.profiling import profile_cuda_runtime
from vision3d_engine.utils.tensor import array_to_tensor, move_to_cuda, tensor_to_array
from vision3d_engine.utils.timer import Timer


class Trainer(EpochBasedTrainer):
    def __init__(self, cfg):
        super().__init__(cfg)
        loader = build_dataloader(PointSet(8), 4, 0, True, collate)
        self.register_loader(loader, loader)
        model = self.register_model(Net())
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))

    def train_step(self, epoch, iteration, data_dict):
        output_dict = self.model(data_dict)
        with get_context_manager().enter_scope("loss"):
            get_context_manager().register("logits", output_dict["logits"])
        loss = torch.nn.functional.cross_entropy(output_dict["logits"], data_dict["label"])
        return output_dict, {"loss": loss}

    def after_backward(self, epoch, iteration, data_dict, output_dict, result_dict):
        assert get_context_manager().get(full_name="loss/logits").grad is not None

    val_step = train_step


def main():
    add_argument("--rounds", type=int, default=1)
    args = parse_args()
    setup_engine(seed=1, cudnn_deterministic=True, debug=False)
    logger = get_logger(log_file=osp.join(os.getcwd(), "tool.log"))
    logger.info("rounds {}".format(args.rounds))
    timer = Timer()
    timer.tic("write")
    writelines(["a", "b\n"], "lines.txt")
    timer.toc("write")
    assert readlines("lines.txt") == ["a", "b"]
    write_correspondences("pairs", np.zeros((2, 3)), np.ones((2, 3)))
    assert readlines("pairs.obj")[-1] == "l 3 4"
    with profile_cuda_runtime("move"):
        moved = move_to_cuda(array_to_tensor({"x": np.ones(3)}))
    assert tensor_to_array(moved)["x"].sum() == 3
    assert get_world_size() == 1 and not is_distributed()
    assert master_only(lambda: "main")() == "main"
    assert load_ext("math", ["sqrt"]).sqrt(4) == 2

    @deprecated("something_new")
    def old():
        pass

    try:
        old()
    except Exception as error:  # noqa: BLE001  the test decides
        print(type(error).__name__, error)

    for number in range(args.rounds):
        cfg = make_cfg(osp.join(os.getcwd(), "round{}".format(number)))
        Trainer(cfg).run()
    model = Net()
    CheckpointManager(cfg.exp.checkpoint_dir).load_checkpoint("epoch-3.pth", model)
    load_state_dict(Net(), model.state_dict(), strict=True)
    print("rounds", args.rounds, get_log_string({"x": 1.0}, epoch=1), logger.log_file, ContextManager().scope)
    print(reset_seed_worker_init_fn.__name__)


if __name__ == "__main__":
    main()

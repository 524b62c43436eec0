"""A process of a world that trains the demo's network and compares what is captured with hooks made by hand."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.stories.serving import serve
from vision3d_engine import EpochBasedTrainer
from vision3d_engine.demo.network import ShapeClassifier
from vision3d_engine.distributed.parallel.shards import is_sharded

PATTERNS = ("edge*", "point*", "head*")


class Checkpointed(ShapeClassifier):
    """Its second part is run again in the backward pass."""

    def __init__(self, **options):
        super().__init__(**options)
        self.repeated, self.runs = self.point.forward, 0
        self.point.forward = self.again

    def again(self, x):
        return checkpoint(self.counted, x, use_reentrant=False)

    def counted(self, x):
        self.runs += 1
        return self.repeated(x)


class Trainer(EpochBasedTrainer):
    def __init__(self, folder, kind, every, **trainer):
        trainer = {"max_epoch": 1, "val_every": "never", "log_steps": 2, "progress_bar": False, **trainer}
        super().__init__({"exp": {"output_dir": folder}, "trainer": trainer})
        torch.manual_seed(self._session.world.rank)
        self.register_loader([{"points": torch.randn(4, 16, 3), "label": torch.arange(4)} for _ in range(5)])
        model = self.register_model({"plain": ShapeClassifier, "checkpointed": Checkpointed}[kind](k=4))
        self.register_optimizer(torch.optim.SGD(model.parameters(), lr=0.01))
        self.found, self.every = {"equal": 0, "steps": [], "different": []}, every
        for pattern in PATTERNS:
            self.capture(pattern, every)

    def loss(self, model, data_dict):
        return nn.functional.cross_entropy(model(data_dict["points"]), data_dict["label"])

    def before_train_step(self, epoch, iteration, data_dict):
        """Make the step by hand: with the same weights and random numbers, on a network of its own."""
        own, self.outputs = ShapeClassifier(k=4), {}
        state = self.model.state_dict()
        own.load_state_dict({key: each.full_tensor() if is_sharded(each) else each for key, each in state.items()})
        for name, module in own.named_modules():
            module.register_forward_hook(lambda _module, _inputs, output, name=name: self.keep(name, output))
        with torch.random.fork_rng():
            self.loss(own, data_dict).backward()

    def keep(self, name, output):
        output.retain_grad()
        self.outputs[name] = output

    def train_step(self, epoch, iteration, data_dict):
        return {}, {"loss": self.loss(self.model, data_dict)}

    def after_backward(self, epoch, iteration, data_dict, output_dict, result_dict):
        if names := self.endpoints.data_keys:
            self.found["steps"].append(iteration)
        for name in names:
            found, expected = self.endpoints.get(full_name=name), self.outputs[name]
            is_equal = torch.equal(found, expected) and torch.equal(found.grad, expected.grad)
            self.found["equal"] += is_equal
            self.found["different"] += [] if is_equal else [name]


def run(case):
    trainer = Trainer(**case)
    trainer.run()
    hooks = sum(len(module._forward_hooks) for name, module in trainer.model.named_modules() if "." in name)
    return {**trainer.found, "hooks": hooks, "runs": getattr(trainer.model, "runs", None)}


if __name__ == "__main__":
    serve(run)

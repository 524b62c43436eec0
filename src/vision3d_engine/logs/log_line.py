from vision3d_engine.loggers.formatting import *
from vision3d_engine.loggers.formatting import get_log_string
from vision3d_engine.loop.pace import describe_pace


def train_line(means, window, position, *, max_epoch, max_iteration, samples_per_step, device):
    epoch, iteration = position["epoch"], position["iteration"]
    left = None if max_iteration is None else (max_epoch - epoch + 1) * max_iteration - iteration
    line = get_log_string(means, epoch, max_epoch, iteration, max_iteration, lr=position["lr"], time_dict=window.times())
    return f"{line}, {describe_pace(window, left, samples_per_step, device)}"

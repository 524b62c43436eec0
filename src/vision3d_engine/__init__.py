"""A training engine for 3D vision: exact, free, clear."""

from vision3d_engine.core.cli import get_parser, ignore_command_line
from vision3d_engine.core.colors import label_colors, value_colors
from vision3d_engine.core.config import Config, load_config
from vision3d_engine.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EngineError,
    FolderError,
    FolderInUseError,
    NonFiniteError,
    ProcessError,
    RegistrationError,
    ReplicaError,
    ResultError,
    SampleError,
    SkipBatch,
    WorkerError,
)
from vision3d_engine.data.collate import collate_packed
from vision3d_engine.data.dataloader import build_dataloader
from vision3d_engine.data.determinism import check_determinism
from vision3d_engine.data.sample_seeds import replay_sample, sample_seed
from vision3d_engine.data.split import split_batch
from vision3d_engine.endpoints.context_manager import ContextManager, get_context_manager
from vision3d_engine.logs.log_line import get_log_string
from vision3d_engine.logs.logger import get_logger
from vision3d_engine.loop.hooks import Hook
from vision3d_engine.metrics.average_meter import AverageMeter
from vision3d_engine.metrics.confusion_matrix import ConfusionMatrix
from vision3d_engine.metrics.part_iou import PartIoU
from vision3d_engine.metrics.point_sets import PointSetDistances
from vision3d_engine.metrics.registration import FeatureMatchingRecall, RegistrationRecall, RMSERecall
from vision3d_engine.metrics.summary_board import SummaryBoard
from vision3d_engine.metrics.timer import Timer
from vision3d_engine.metrics.whole_set import WholeSetMetric
from vision3d_engine.optim.optimizer import build_optimizer
from vision3d_engine.optim.scheduler import build_scheduler
from vision3d_engine.testers.batch import BatchTester
from vision3d_engine.testers.scene import SceneTester
from vision3d_engine.testers.single import SingleTester
from vision3d_engine.trainers.epoch_based import EpochBasedTrainer
from vision3d_engine.trainers.iter_based import IterBasedTrainer
from vision3d_engine.writers.protocol import MetricWriter

__version__ = "0.1.0"

__all__ = [
    "AverageMeter",
    "BatchTester",
    "CheckpointError",
    "Config",
    "ConfigError",
    "ConfusionMatrix",
    "ContextManager",
    "DataError",
    "EngineError",
    "EpochBasedTrainer",
    "FeatureMatchingRecall",
    "FolderError",
    "FolderInUseError",
    "Hook",
    "IterBasedTrainer",
    "MetricWriter",
    "NonFiniteError",
    "PartIoU",
    "PointSetDistances",
    "ProcessError",
    "RMSERecall",
    "RegistrationError",
    "RegistrationRecall",
    "ReplicaError",
    "ResultError",
    "SampleError",
    "SceneTester",
    "SingleTester",
    "SkipBatch",
    "SummaryBoard",
    "Timer",
    "WholeSetMetric",
    "WorkerError",
    "build_dataloader",
    "build_optimizer",
    "build_scheduler",
    "check_determinism",
    "collate_packed",
    "get_context_manager",
    "get_log_string",
    "get_logger",
    "get_parser",
    "ignore_command_line",
    "label_colors",
    "load_config",
    "replay_sample",
    "sample_seed",
    "split_batch",
    "value_colors",
]

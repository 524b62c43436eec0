from vision3d_engine.loggers.console import Logger, get_logger, set_logger
